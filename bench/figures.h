// What a suite answers: named numbers with their units, printed as one JSON object.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace terrace::bench {

struct Figure {
  std::string name;
  double value = 0;
  std::string unit;  // "ns", "us", "ms", "ratio", "count", "bytes", "1/s"
};
using Figures = std::vector<Figure>;

// The processor, memory and kernel that figures belong to, and how busy the machine was.
nlohmann::ordered_json DescribeMachine();
// {"suite", "machine", "figures": {name: number}, "units": {name: unit}}. Whole numbers stay whole.
nlohmann::ordered_json FiguresJson(const std::string& suite, const Figures& figures);
// One figure a line, for people.
std::string FiguresText(const std::string& suite, const Figures& figures);

}  // namespace terrace::bench
