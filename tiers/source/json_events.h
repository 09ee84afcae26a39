// JsonEvents: the base of our readers of foreign JSON, fed event by event.
//
// We read events and not a document, for a document keeps one of two members of the same name and
// forgets that there were two. Every event is refused until a reader overrides it; a reader answers
// an event it does not accept with Refuse. ParseJson stops every exception of the JSON library.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "base/status.h"

namespace terrace {

class JsonEvents : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_integer(number_integer_t) override { return Unexpected("a negative number"); }
  bool number_unsigned(number_unsigned_t) override { return Unexpected("a number"); }
  bool number_float(number_float_t, const string_t&) override {
    return Unexpected("a number that is not an integer below 2^64");
  }
  bool string(string_t&) override { return Unexpected("a string"); }
  bool binary(binary_t&) override { return Unexpected("binary data"); }
  bool start_object(std::size_t) override { return Unexpected("an object"); }
  bool key(string_t&) override { return Unexpected("a member"); }
  bool end_object() override { return Unexpected("the end of an object"); }
  bool start_array(std::size_t) override { return Unexpected("an array"); }
  bool end_array() override { return Unexpected("the end of an array"); }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override;

  const Status& status() const { return status_; }

 protected:
  // Where the reader is, for messages: "tensor 'x': shape".
  virtual std::string Place() const = 0;
  // What it would accept there: "a string".
  virtual std::string Wanted() const = 0;

  bool Refuse(std::string message);
  bool Unexpected(std::string_view what) {
    return Refuse(Place() + " is " + std::string(what) + ", not " + Wanted());
  }

 private:
  Status status_;
};

// Feeds `text` to `events`. Ok when all of it is one JSON value that `events` accepted.
Status ParseJson(std::string_view text, JsonEvents& events);

}  // namespace terrace
