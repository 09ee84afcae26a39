// Asks a daemon for its metrics by plain HTTP, and reads the text that it answers.
//
// Blocking, one thread, 20 s at most. Nothing here asserts.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"

namespace terrace::bench {

// `address` as metrics.listen has it: "127.0.0.1:PORT" or "unix:/PATH".
Result<UniqueFd> ConnectTo(const std::string& address);
// Sends `request` as it is and reads until the other end closes.
Result<std::string> HttpExchange(const std::string& address, std::string_view request);

struct HttpAnswer {
  int status = 0;
  std::string head;  // All before the empty line.
  std::string body;
};
Result<HttpAnswer> HttpGet(const std::string& address, const std::string& target);

struct Sample {
  std::string name;
  std::map<std::string, std::string> labels;
  double value = 0;
};
using Labels = std::map<std::string, std::string>;

// What one scrape told.
class Scrape {
 public:
  // An error names the first line that is no sample and no comment.
  static Result<Scrape> Parse(std::string text);
  static Result<Scrape> From(const std::string& address);

  const std::string& text() const { return text_; }
  const std::vector<Sample>& samples() const { return samples_; }
  // Of all samples of that name with these labels, and maybe others.
  double Sum(std::string_view name, const Labels& labels = {}) const;
  bool Has(std::string_view name) const;

 private:
  std::string text_;
  std::vector<Sample> samples_;
};

// The quantile of what a histogram without other labels counted between two scrapes: linear within
// a bucket, as Prometheus does it.
double QuantileBetween(const Scrape& before, const Scrape& after, const std::string& histogram,
                       double quantile);

}  // namespace terrace::bench
