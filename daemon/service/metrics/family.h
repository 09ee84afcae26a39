// Family: a family of metrics in the making, for who writes the text of a scrape. Any thread; used
// by one.
#pragma once

#include <prometheus/client_metric.h>
#include <prometheus/metric_family.h>

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "daemon/engine/figures.h"

namespace terrace {

// Prometheus refuses all of a scrape for one label that is not UTF-8, or two alike. So what is not
// printable ASCII is told as %XX, which keeps different names different.
inline std::string LabelText(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  std::string label;
  label.reserve(text.size());
  for (const char c : text) {
    if (c >= 0x20 && c < 0x7f && c != '%') {
      label.push_back(c);
    } else {
      const auto byte = static_cast<unsigned char>(c);
      label.append({'%', kDigits[byte >> 4], kDigits[byte & 15]});
    }
  }
  return label;
}

inline constexpr size_t kMostFamilies = 128;

struct Label {
  std::string_view name;
  std::string_view value;
};

// A family in the making.
class Family {
 public:
  Family(std::vector<prometheus::MetricFamily>* families, const char* name, const char* help,
         prometheus::MetricType type)
      : family_(families->emplace_back()) {
    TERRACE_CHECK(families->size() <= kMostFamilies);  // Or those before would have moved.
    family_.name = name;
    family_.help = help;
    family_.type = type;
  }

  void Add(std::initializer_list<Label> labels, double value) {
    prometheus::ClientMetric& metric = Labelled(labels);
    (family_.type == prometheus::MetricType::Counter ? metric.counter.value : metric.gauge.value) =
        value;
  }
  void Add(std::initializer_list<Label> labels, uint64_t value) {
    Add(labels, static_cast<double>(value));
  }
  // `counts` has one more element than there are bounds.
  void AddHistogram(std::initializer_list<Label> labels, std::span<const double> bounds,
                    std::span<const uint64_t> counts, double sum) {
    prometheus::ClientMetric::Histogram& histogram = Labelled(labels).histogram;
    uint64_t below = 0;
    for (size_t i = 0; i < bounds.size(); ++i) {
      below += counts[i];
      histogram.bucket.push_back({below, bounds[i]});
    }
    histogram.sample_count = below + counts[bounds.size()];
    histogram.sample_sum = sum;
  }

 private:
  prometheus::ClientMetric& Labelled(std::initializer_list<Label> labels) {
    prometheus::ClientMetric& metric = family_.metric.emplace_back();
    metric.label.reserve(labels.size());
    for (const Label& label : labels)
      metric.label.push_back({std::string(label.name), std::string(label.value)});
    return metric;
  }

  prometheus::MetricFamily& family_;
};

using Families = std::vector<prometheus::MetricFamily>;
inline Family Counter(Families* families, const char* name, const char* help) {
  return {families, name, help, prometheus::MetricType::Counter};
}
inline Family Gauge(Families* families, const char* name, const char* help) {
  return {families, name, help, prometheus::MetricType::Gauge};
}

// What the page store and its devices tell; nothing where there is none (store_exposition.cc).
void AddStore(Families* families, const StoreFigures& store);
// What GPUs tell; nothing where there is none (gpu_exposition.cc).
void AddGpus(Families* families, const std::vector<GpuReport>& devices);

}  // namespace terrace
