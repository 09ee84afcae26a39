// The verb `make-model`: writes a model (model_writer.h) to a directory.
#pragma once

namespace CLI {
class App;
}

namespace terrace {

// Adds the verb to `app`. When the command line asks for it, parsing runs it and sets `exit_code`.
// `exit_code` outlives the parsing.
void AddMakeModel(CLI::App& app, int& exit_code);

}  // namespace terrace
