#include "bench/scrape.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <utility>

namespace terrace::bench {
namespace {

constexpr timeval kTimeLimit{.tv_sec = 20, .tv_usec = 0};

Status ConnectSocket(const UniqueFd& socket, const sockaddr* address, socklen_t bytes) {
  ::setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &kTimeLimit, sizeof kTimeLimit);
  ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &kTimeLimit, sizeof kTimeLimit);
  if (::connect(socket.get(), address, bytes) != 0) return SystemError("connect", errno);
  return {};
}

// One line of the text format: name, labels in braces, value. nullopt: it is none.
std::optional<Sample> ParseSample(std::string_view line) {
  Sample sample;
  const size_t name_end = line.find_first_of("{ ");
  if (name_end == 0 || name_end == std::string_view::npos) return std::nullopt;
  sample.name = line.substr(0, name_end);
  size_t at = name_end;
  if (line[at] == '{') {
    ++at;
    while (at < line.size() && line[at] != '}') {
      const size_t equals = line.find("=\"", at);
      if (equals == std::string_view::npos) return std::nullopt;
      const std::string label(line.substr(at, equals - at));
      std::string& value = sample.labels[label];
      for (at = equals + 2; at < line.size() && line[at] != '"'; ++at) {
        if (line[at] == '\\') ++at;
        if (at < line.size()) value.push_back(line[at]);
      }
      if (++at < line.size() && line[at] == ',') ++at;
    }
    ++at;
  }
  if (at >= line.size() || line[at] != ' ') return std::nullopt;
  const std::string number(line.substr(at + 1));
  char* end = nullptr;
  sample.value = std::strtod(number.c_str(), &end);
  if (end == number.c_str() || *end != '\0') return std::nullopt;
  return sample;
}

}  // namespace

Result<UniqueFd> ConnectTo(const std::string& address) {
  constexpr std::string_view kUnix = "unix:";
  if (address.starts_with(kUnix)) {
    sockaddr_un to{};
    to.sun_family = AF_UNIX;
    const std::string path = address.substr(kUnix.size());
    std::memcpy(to.sun_path, path.data(), std::min(path.size(), sizeof to.sun_path - 1));
    UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    RETURN_IF_ERROR(ConnectSocket(socket, reinterpret_cast<sockaddr*>(&to), sizeof to));
    return socket;
  }
  const size_t colon = address.rfind(':');
  sockaddr_in to{};
  to.sin_family = AF_INET;
  uint16_t port = 0;
  if (colon == std::string::npos ||
      ::inet_pton(AF_INET, address.substr(0, colon).c_str(), &to.sin_addr) != 1 ||
      std::from_chars(address.data() + colon + 1, address.data() + address.size(), port).ec !=
          std::errc()) {
    return Status(Code::kInvalidArgument, address + " is no address");
  }
  to.sin_port = htons(port);
  UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  RETURN_IF_ERROR(ConnectSocket(socket, reinterpret_cast<sockaddr*>(&to), sizeof to));
  return socket;
}

Result<std::string> HttpExchange(const std::string& address, std::string_view request) {
  ASSIGN_OR_RETURN(const UniqueFd socket, ConnectTo(address));
  while (!request.empty()) {
    const ssize_t sent = ::send(socket.get(), request.data(), request.size(), MSG_NOSIGNAL);
    if (sent < 0) break;  // It may have answered already and closed.
    request.remove_prefix(static_cast<size_t>(sent));
  }
  std::string answer;
  std::vector<char> buffer(64 << 10);
  for (;;) {
    const ssize_t got = ::recv(socket.get(), buffer.data(), buffer.size(), 0);
    if (got == 0) return answer;
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == ECONNRESET && !answer.empty()) return answer;
    if (got < 0) return SystemError("recv", errno);
    answer.append(buffer.data(), static_cast<size_t>(got));
  }
}

Result<HttpAnswer> HttpGet(const std::string& address, const std::string& target) {
  ASSIGN_OR_RETURN(const std::string answer,
                   HttpExchange(address, "GET " + target + " HTTP/1.1\r\nHost: localhost\r\n\r\n"));
  const size_t empty_line = answer.find("\r\n\r\n");
  if (!answer.starts_with("HTTP/1.1 ") || empty_line == std::string::npos) {
    return Status(Code::kDataLoss, "no answer of HTTP: " + answer.substr(0, 100));
  }
  return HttpAnswer{.status = std::atoi(answer.c_str() + std::strlen("HTTP/1.1 ")),
                    .head = answer.substr(0, empty_line),
                    .body = answer.substr(empty_line + 4)};
}

Result<Scrape> Scrape::Parse(std::string text) {
  Scrape scrape;
  scrape.text_ = std::move(text);
  std::string_view rest = scrape.text_;
  while (!rest.empty()) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    if (line.empty() || line.front() == '#') continue;
    std::optional<Sample> sample = ParseSample(line);
    if (!sample) return Status(Code::kDataLoss, "no sample: " + std::string(line));
    scrape.samples_.push_back(*std::move(sample));
  }
  return scrape;
}

Result<Scrape> Scrape::From(const std::string& address) {
  ASSIGN_OR_RETURN(HttpAnswer answer, HttpGet(address, "/metrics"));
  if (answer.status != 200) {
    return Status(Code::kUnavailable, "status " + std::to_string(answer.status));
  }
  return Parse(std::move(answer.body));
}

double Scrape::Sum(std::string_view name, const Labels& labels) const {
  double sum = 0;
  for (const Sample& sample : samples_) {
    if (sample.name != name) continue;
    const bool matches = std::all_of(labels.begin(), labels.end(), [&](const auto& label) {
      const auto found = sample.labels.find(label.first);
      return found != sample.labels.end() && found->second == label.second;
    });
    if (matches) sum += sample.value;
  }
  return sum;
}

bool Scrape::Has(std::string_view name) const {
  return std::any_of(samples_.begin(), samples_.end(),
                     [&](const Sample& sample) { return sample.name == name; });
}

double QuantileBetween(const Scrape& before, const Scrape& after, const std::string& histogram,
                       double quantile) {
  const std::string bucket = histogram + "_bucket";
  std::map<double, double> cumulative;  // Of the time between, by upper bound.
  for (const Sample& sample : after.samples()) {
    if (sample.name != bucket) continue;
    const std::string& bound = sample.labels.at("le");
    cumulative[std::strtod(bound.c_str(), nullptr)] =
        sample.value - before.Sum(bucket, {{"le", bound}});
  }
  if (cumulative.empty() || cumulative.rbegin()->second <= 0) return 0;
  const double rank = quantile * cumulative.rbegin()->second;
  double low = 0;
  double below = 0;
  for (const auto& [bound, count] : cumulative) {
    // Beyond the last bound nothing is known.
    if (count >= rank) {
      return bound > 1e300 ? low : low + (bound - low) * (rank - below) / (count - below);
    }
    low = bound;
    below = count;
  }
  return low;
}

}  // namespace terrace::bench
