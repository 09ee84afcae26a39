#include "bench/figures.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

namespace terrace::bench {
namespace {

std::string FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string ProcessorName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

// The chosen word of a line such as "always [madvise] never".
std::string Chosen(const std::string& line) {
  const size_t open = line.find('[');
  const size_t close = line.find(']');
  if (open == std::string::npos || close == std::string::npos) return line;
  return line.substr(open + 1, close - open - 1);
}

// "12,031", "3.14 us", "2.47 GB".
std::string FigureText(const Figure& figure) {
  char text[64];
  if (figure.unit == "bytes") {
    const int power = figure.value >= 1e9   ? 9
                      : figure.value >= 1e6 ? 6
                      : figure.value >= 1e3 ? 3
                                            : 0;
    const char* unit = power == 9 ? "GB" : power == 6 ? "MB" : power == 3 ? "kB" : "B";
    std::snprintf(text, sizeof text, "%.*f %s", power == 0 ? 0 : 2,
                  figure.value / std::pow(10.0, power), unit);
  } else if (figure.unit == "count" && figure.value == std::floor(figure.value)) {
    std::snprintf(text, sizeof text, "%.0f", figure.value);
  } else if (figure.unit == "ratio") {
    std::snprintf(text, sizeof text, "%.3f", figure.value);
  } else {
    std::snprintf(text, sizeof text, "%.4g %s", figure.value, figure.unit.c_str());
  }
  return text;
}

}  // namespace

nlohmann::ordered_json DescribeMachine() {
  utsname system{};
  uname(&system);
  const uint64_t pages = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES));
  const uint64_t page_bytes = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const std::string folder = "/sys/kernel/mm/transparent_hugepage/";
  return {{"processor", ProcessorName()},
          {"processors", sysconf(_SC_NPROCESSORS_ONLN)},
          {"memory_bytes", pages * page_bytes},
          {"kernel", std::string(system.sysname) + " " + system.release},
          {"huge_pages", Chosen(FirstLine(folder + "enabled"))},
          {"huge_pages_shared", Chosen(FirstLine(folder + "shmem_enabled"))},
          {"load_average", std::atof(FirstLine("/proc/loadavg").c_str())}};
}

nlohmann::ordered_json FiguresJson(const std::string& suite, const Figures& figures) {
  nlohmann::ordered_json values = nlohmann::ordered_json::object();
  nlohmann::ordered_json units = nlohmann::ordered_json::object();
  for (const Figure& figure : figures) {
    if (figure.value == std::floor(figure.value) && std::fabs(figure.value) < 0x1p53) {
      values[figure.name] = static_cast<int64_t>(figure.value);
    } else {
      values[figure.name] = figure.value;
    }
    units[figure.name] = figure.unit;
  }
  return {{"suite", suite}, {"machine", DescribeMachine()}, {"figures", values}, {"units", units}};
}

std::string FiguresText(const std::string& suite, const Figures& figures) {
  std::string text = suite + "\n";
  for (const Figure& figure : figures) {
    char line[160];
    std::snprintf(line, sizeof line, "  %-40s %s\n", figure.name.c_str(),
                  FigureText(figure).c_str());
    text += line;
  }
  return text;
}

}  // namespace terrace::bench
