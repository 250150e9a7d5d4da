// Error handling between C++ and Rust: every function that Rust calls returns 0, or 1 with the reason in
// last_error. No exception leaves C++.
#pragma once

#include <c10/util/Exception.h>

#include <string>

namespace luthier {

// Message of this thread's last failure.
inline thread_local std::string last_error;

template <class F>
int guarded(F&& body) noexcept {
  try {
    try {
      body();
      return 0;
    } catch (const c10::Error& error) {
      last_error = error.what_without_backtrace();
    } catch (const std::exception& error) {
      last_error = error.what();
    } catch (...) {
      last_error = "unknown C++ exception";
    }
  } catch (...) {  // not even memory for the message
  }
  return 1;
}

}  // namespace luthier
