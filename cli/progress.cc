#include "cli/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "cli/text.h"

namespace terrace::cli {
namespace {

constexpr std::chrono::milliseconds kBetweenDrawings(100);
constexpr size_t kMinBar = 10;
constexpr size_t kMaxBar = 40;

size_t TerminalColumns() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

ProgressBar::ProgressBar(std::string label, bool enabled)
    : label_(Printable(label)),
      enabled_(enabled && isatty(STDERR_FILENO) == 1),
      started_(std::chrono::steady_clock::now()) {}

ProgressBar::~ProgressBar() {
  if (visible_) std::fputs("\r\x1b[K", stderr);
}

void ProgressBar::Show(uint64_t done_bytes, uint64_t total_bytes) {
  const Time now = std::chrono::steady_clock::now();
  if (!watching_) {
    watching_ = true;
    first_bytes_ = done_bytes;
  }
  if (!enabled_ || total_bytes == 0 || (visible_ && now - drawn_ < kBetweenDrawings)) return;
  drawn_ = now;
  visible_ = true;
  done_bytes = std::min(done_bytes, total_bytes);

  const double seconds = std::chrono::duration<double>(now - started_).count();
  const double since = static_cast<double>(done_bytes - std::min(first_bytes_, done_bytes));
  const double rate = seconds > 0 ? since / seconds : 0;
  std::string numbers = HumanBytes(done_bytes) + " of " + HumanBytes(total_bytes);
  if (rate >= 1) {
    const double left = static_cast<double>(total_bytes - done_bytes) / rate;
    numbers += ", " + HumanBytes(static_cast<uint64_t>(rate)) + "/s, " +
               HumanSeconds(static_cast<uint64_t>(left + 0.5)) + " left";
  }
  // The bar takes what the numbers leave of the line, within reason.
  const size_t columns = TerminalColumns() - 1;
  const size_t others = label_.size() + numbers.size() + 4;
  const size_t bar = std::clamp(columns - std::min(columns, others), kMinBar, kMaxBar);
  const size_t filled =
      static_cast<size_t>(static_cast<double>(bar) * static_cast<double>(done_bytes) /
                          static_cast<double>(total_bytes));
  std::string line =
      label_ + " [" + std::string(filled, '=') + std::string(bar - filled, ' ') + "] " + numbers;
  line.resize(std::min(line.size(), columns));
  std::fprintf(stderr, "\r\x1b[K%s", line.c_str());
}

}  // namespace terrace::cli
