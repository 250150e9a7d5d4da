// What the process does on signals that no safe Rust can: holding them back across exec, and last words.

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <atomic>
#include <string>

#include "seam.h"

using luthier::guarded;

namespace {

// Set before the handler is installed, and never changed afterwards.
std::string sentence, prepared, published;

std::atomic_flag speaking = ATOMIC_FLAG_INIT;

// Only async-signal-safe calls. The file is renamed and not written, since the disk may be full.
void say_last_words(int signal) {
  // Other threads that read the same memory must not end the process before the first has spoken.
  if (speaking.test_and_set()) {
    while (true) pause();
  }
  ssize_t written = write(STDERR_FILENO, sentence.data(), sentence.size());
  written += rename(prepared.c_str(), published.c_str());
  (void)written;
  // Pending until this returns; then the process ends as if the signal had not been handled.
  ::signal(signal, SIG_DFL);
  raise(signal);
}

void checked(int error) { TORCH_CHECK(error == 0, strerror(error)); }

}  // namespace

extern "C" {

// Delays these signals in this thread and those it starts, or delivers them again.
int luthier_hold_signals(const int* signals, size_t count, int hold) {
  return guarded([=] {
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < count; i++) sigaddset(&set, signals[i]);
    checked(pthread_sigmask(hold != 0 ? SIG_BLOCK : SIG_UNBLOCK, &set, nullptr));
  });
}

// On SIGBUS from now on: writes a sentence to standard error, renames a file, and ends as without a handler.
int luthier_on_bus_error(const char* said, const char* from, const char* to) {
  return guarded([=] {
    TORCH_CHECK(sentence.empty(), "the last words are set already");
    sentence = said;
    prepared = from;
    published = to;
    struct sigaction action {};
    action.sa_handler = say_last_words;
    action.sa_flags = SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    checked(sigaction(SIGBUS, &action, nullptr) == 0 ? 0 : errno);
  });
}

}  // extern "C"
