// terracectl: the operator's command line.
#include <CLI/CLI.hpp>

#include "cli/text.h"
#include "cli/verbs.h"

namespace terrace::cli {
namespace {

constexpr const char* kFooter = R"(
SIZE is a number of bytes or one with a unit: 64K, 1.5GiB (powers of 1024), 10MB (powers of 1000).
--json prints one JSON value on standard output, exact numbers in bytes; errors become an object on
standard error.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 no daemon; 4 no such model, space or page;
5 --timeout passed first; 6 fsck found something.)";

// Everything that arguments can say; a verb reads its own part.
struct Arguments {
  CommonOptions common;
  std::string model;
  std::string version;
  std::string path;
  std::string tenant;
  std::string tier;
  std::string device;
  PageChoice page;
  std::string space;
  uint32_t limit = 100;
  std::string file;
  std::string bytes;
  bool all = false;
  bool import_image = false;
  double watch_s = 0;
  PromoteChoice promote;
  FsckChoice fsck;
};

CLI::App* AddVerb(CLI::App& app, const char* name, const char* description) {
  CLI::App* verb = app.add_subcommand(name, description);
  verb->fallthrough();  // Common options may follow the verb.
  return verb;
}

void AddReportVerbs(CLI::App& app, Arguments& arguments) {
  AddVerb(app, "status", "Memory, tiers, lookups and limits of the daemon");
  AddVerb(app, "models", "Registered models and what of them is in memory");
  AddVerb(app, "tiers", "What each tier holds, how its devices are, what the store wrote and read")
      ->add_option("--watch", arguments.watch_s,
                   "Every so many seconds, with what was read and written a second meanwhile")
      ->check(CLI::Range(0.1, 86'400.0));
  AddVerb(app, "spaces", "Where KV pages live: layouts and how many pages");
  AddVerb(app, "clients", "Who is connected, with what they pin and hold");
  CLI::App* pages = AddVerb(app, "pages", "Pages that can be found now");
  pages->add_option("--space", arguments.space, "Of this space: its id or the beginning of it");
  pages->add_option("--limit", arguments.limit, "At most so many")
      ->check(CLI::Range(1u, 10'000u))
      ->capture_default_str();
}

void AddTierChoice(CLI::App* verb, Arguments& arguments) {
  verb->add_option("--tier", arguments.tier, "host (the default), or device: a GPU")
      ->check(CLI::IsMember({"host", "device"}));
  verb->add_option("--device", arguments.device,
                   "Of --tier device, which one: its number or UUID; of several, load chooses");
}

void AddModelVerbs(CLI::App& app, Arguments& arguments) {
  CLI::App* model =
      AddVerb(app, "model", "Registers and forgets models, and says who may have them");
  model->require_subcommand(1);
  CLI::App* add = AddVerb(*model, "add",
                          "Registers a model: a safetensors file, a Hugging Face directory, or a "
                          "model folder of the hub cache");
  add->add_option("NAME", arguments.model, "At most 128 of A-Z a-z 0-9 . _ / -")->required();
  add->add_option("--version", arguments.version, "Your label for these weights")->required();
  add->add_option("--from", arguments.path, "Where the weights are")
      ->required()
      ->check(CLI::ExistingPath);
  add->add_flag(
      "--import", arguments.import_image,
      "Load it too, and write its image to a file of the daemon's: later loads read that, "
      "as fast as the device is");
  CLI::App* remove = AddVerb(*model, "remove", "Forgets a model, or one version of it");
  remove->add_option("NAME[@VERSION]", arguments.model, "Without a version: all of them")
      ->required();
  const auto add_access = [&](const char* name, const char* description) {
    CLI::App* access = AddVerb(*model, name, description);
    access->add_option("NAME", arguments.model, "The model, with all its versions")->required();
    access->add_option("TENANT", arguments.tenant, "As the daemon's configuration names it")
        ->required();
  };
  add_access("grant", "Lets a tenant attach a model's weights");
  add_access("revoke", "Lets it attach them no more; what it has attached stays");
  CLI::App* load = AddVerb(app, "load", "Brings a model's weights into memory");
  load->add_option("NAME[@VERSION]", arguments.model, "Without a version: the one added last")
      ->required();
  AddTierChoice(load, arguments);
  CLI::App* unload = AddVerb(app, "unload", "Frees a model's weights as clients let go of them");
  unload->add_option("NAME[@VERSION]", arguments.model, "Without a version: the one added last")
      ->required();
  AddTierChoice(unload, arguments);
}

void AddPageChoice(CLI::App* verb, Arguments& arguments) {
  verb->add_option("--space", arguments.page.space, "The space's id or the beginning of it")
      ->required();
  CLI::Option* key =
      verb->add_option("--key", arguments.page.key, "The page's key: 64 hexadecimal digits");
  CLI::Option* tokens = verb->add_option(
      "--tokens", arguments.page.tokens,
      "Token ids of the whole prefix up to the end of the page: 1,2,3 or @FILE that lists them");
  key->excludes(tokens);
}

void AddPageVerbs(CLI::App& app, Arguments& arguments) {
  CLI::App* put = AddVerb(app, "put", "Publishes one page");
  AddPageChoice(put, arguments);
  put->add_option("FILE", arguments.file, "The page's bytes; - is standard input")->required();
  CLI::App* get = AddVerb(app, "get", "Writes the bytes of one page");
  AddPageChoice(get, arguments);
  get->add_option("-o,--output", arguments.file, "To this file instead of standard output");
  CLI::App* evict = AddVerb(app, "evict", "Evicts pages and weights that nobody holds");
  CLI::Option* bytes = evict->add_option("--bytes", arguments.bytes, "At least SIZE");
  CLI::Option* all = evict->add_flag("--all", arguments.all, "All of it");
  bytes->excludes(all);
  CLI::App* demote =
      AddVerb(app, "demote", "Takes pages that nobody holds out of memory, once they are stored");
  CLI::Option* demoted = demote->add_option("--bytes", arguments.bytes, "At least SIZE");
  demoted->excludes(demote->add_flag("--all", arguments.all, "All of them"));
  CLI::App* promote = AddVerb(
      app, "promote", "Brings stored pages into memory that is free, those used last first");
  CLI::Option* promoted = promote->add_option("--bytes", arguments.bytes, "At most SIZE");
  promoted->excludes(promote->add_flag("--all", arguments.all, "As many as there is room for"));
  promote->add_option("--tenant", arguments.promote.tenant, "Of this tenant alone");
  promote->add_option("--space", arguments.promote.space, "Of this space alone: its whole id");
  promote->add_flag("--wait", arguments.promote.wait, "Until it is over, and shows how far it is");
  AddVerb(app, "flush", "Waits until all that is stored survives the loss of power");
  CLI::App* fsck =
      AddVerb(app, "fsck", "Checks the page store while it serves: its index, and what is where");
  fsck->add_flag("--data", arguments.fsck.data, "Reads every page too, behind all other reads");
  fsck->add_flag("--repair", arguments.fsck.repair,
                 "Erases bad pages, frees entries and slots of no page");
}

int UsageError(const Invocation& invocation, std::string_view message) {
  return invocation.Fail(kExitUsage, "invalid_argument", message, "see `terracectl --help`");
}

bool OneChosen(const PageChoice& page) {
  return page.key.empty() != page.tokens.empty();
}

int RunPageVerb(const std::string& verb, Invocation& invocation, const Arguments& arguments) {
  if (verb == "flush") return Flush(invocation);
  if (verb == "fsck") return Fsck(invocation, arguments.fsck);
  if (verb == "evict" || verb == "demote" || verb == "promote") {
    const auto run = [&](uint64_t bytes) {
      if (verb == "evict") return Evict(invocation, bytes);
      if (verb == "demote") return Demote(invocation, bytes);
      PromoteChoice choice = arguments.promote;
      choice.bytes = bytes;
      return Promote(invocation, choice);
    };
    if (arguments.all) return run(0);
    const auto bytes = ParseSize(arguments.bytes);
    if (arguments.bytes.empty())
      return UsageError(invocation, verb + " needs --bytes SIZE or --all");
    if (!bytes || *bytes == 0) {
      return UsageError(invocation, "--bytes: '" + arguments.bytes + "' is not a size");
    }
    return run(*bytes);
  }
  if (!OneChosen(arguments.page)) {
    return UsageError(invocation, verb + " needs --key HEX or --tokens LIST");
  }
  return verb == "put" ? PutPage(invocation, arguments.page, arguments.file)
                       : GetPage(invocation, arguments.page, arguments.file);
}

int RunVerb(const CLI::App& app, Invocation& invocation, const Arguments& arguments) {
  const CLI::App* verb = app.get_subcommands().front();
  const std::string name = verb->get_name();
  if (name == "status") return ShowStatus(invocation);
  if (name == "models") return ShowModels(invocation);
  if (name == "tiers") return ShowTiers(invocation, arguments.watch_s);
  if (name == "spaces") return ShowSpaces(invocation);
  if (name == "clients") return ShowClients(invocation);
  if (name == "pages") return ShowPages(invocation, arguments.space, arguments.limit);
  if (name == "version") return ShowVersion(invocation);
  if (name == "load" || name == "unload") {
    const TierChoice tier = {.on_device = arguments.tier == "device", .device = arguments.device};
    if (!tier.on_device && !tier.device.empty()) {
      return UsageError(invocation, "--device is of --tier device");
    }
    const ModelName model = ParseModelName(arguments.model);
    return name == "load" ? LoadModel(invocation, model, tier)
                          : UnloadModel(invocation, model, tier);
  }
  if (name == "model") {
    const std::string what = verb->get_subcommands().front()->get_name();
    if (what == "add") {
      return AddModel(invocation, {arguments.model, arguments.version}, arguments.path,
                      arguments.import_image);
    }
    if (what == "grant") return GrantModel(invocation, arguments.model, arguments.tenant);
    if (what == "revoke") return RevokeModel(invocation, arguments.model, arguments.tenant);
    return RemoveModel(invocation, ParseModelName(arguments.model));
  }
  return RunPageVerb(name, invocation, arguments);
}

int Main(int argc, char** argv) {
  CLI::App app("Terrace: the cache daemon of this host, from the operator's side.", "terracectl");
  app.footer(kFooter);
  app.require_subcommand(1);
  Arguments arguments;
  app.add_option("--socket", arguments.common.socket,
                 "The daemon's socket; default $XDG_RUNTIME_DIR/terrace/terraced.sock, else "
                 "/tmp/terrace-UID/terraced.sock");
  app.add_option("--timeout", arguments.common.timeout_s,
                 "Deadline of each call in seconds; default 10, for load and model add 3600")
      ->check(CLI::Range(0.001, 1'000'000.0));
  app.add_flag("--json", arguments.common.json, "For programs");
  AddReportVerbs(app, arguments);
  AddModelVerbs(app, arguments);
  AddPageVerbs(app, arguments);
  AddVerb(app, "version", "Versions of this program and of the daemon, if one listens");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  Invocation invocation(arguments.common);
  return RunVerb(app, invocation, arguments);
}

}  // namespace
}  // namespace terrace::cli

int main(int argc, char** argv) {
  return terrace::cli::Main(argc, argv);
}
