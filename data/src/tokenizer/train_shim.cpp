// Reaches SentencePiece's trainer and its table of scripts, which have no C interface. The declarations repeat those of
// SentencePiece 0.2.1 that are used here; names and types are part of the linked symbols, so a
// version that differs in them does not link.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iostream>
#include <memory>
#include <mutex>
#include <streambuf>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace sentencepiece {
namespace util {
class Status {
 public:
  ~Status();
  Status(const Status &other);
  const char *error_message() const;
  std::string ToString() const;
  bool ok() const { return rep_ == nullptr; }

 private:
  struct Rep;
  std::unique_ptr<Rep> rep_;
};
}  // namespace util

namespace logging {
void SetMinLogLevel(int level);
}

namespace unicode_script {
enum ScriptType : int;
ScriptType GetScript(uint32_t c);
}  // namespace unicode_script

class SentencePieceTrainer {
 public:
  static util::Status Train(std::string_view args,
                            const std::vector<std::string> &sentences,
                            std::string *serialized_model_proto);
};
}  // namespace sentencepiece

namespace {

// Hears a line of the trainer's log.
using Heard = void (*)(void *context, const char *line, size_t length);

// Takes the place of std::cerr's buffer, to which the trainer logs, and hands its lines on.
class LogLines : public std::streambuf {
 public:
  LogLines(Heard heard, void *context)
      : heard_(heard), context_(context), before_(std::cerr.rdbuf(this)) {
    sentencepiece::logging::SetMinLogLevel(0);
  }
  ~LogLines() override {
    sentencepiece::logging::SetMinLogLevel(3);
    std::cerr.rdbuf(before_);
  }
  LogLines(const LogLines &) = delete;
  LogLines &operator=(const LogLines &) = delete;

 protected:
  std::streamsize xsputn(const char *text, std::streamsize length) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (std::streamsize i = 0; i < length; ++i) Add(text[i]);
    return length;
  }
  int_type overflow(int_type c) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (c != traits_type::eof()) Add(traits_type::to_char_type(c));
    return traits_type::not_eof(c);
  }

 private:
  // Longest line that is kept: what it says of progress is at the beginning.
  static constexpr size_t kLongest = 512;

  void Add(char c) {
    if (c != '\n') {
      if (line_.size() < kLongest) line_.push_back(c);
      return;
    }
    heard_(context_, line_.data(), line_.size());
    line_.clear();
  }

  std::mutex mutex_;
  std::string line_;
  Heard heard_;
  void *context_;
  std::streambuf *before_;
};

}  // namespace

extern "C" {

// Only fatal messages: everything else comes back as a status.
void altiplano_spm_quiet() { sentencepiece::logging::SetMinLogLevel(3); }

// Trains on `count` sentences: sentence i ends before byte ends[i] of `text` and begins where the
// one before it ends. Calls `heard` with every line of the trainer's log. Returns 0 and the model,
// or 1 and a message; both are freed with `free`.
int altiplano_spm_train(const char *args, const char *text, const size_t *ends,
                        size_t count, Heard heard, void *context, char **result,
                        size_t *result_length) {
  std::string answer;
  int failed = 1;
  try {
    std::vector<std::string> sentences;
    sentences.reserve(count);
    size_t begin = 0;
    for (size_t i = 0; i < count; ++i) {
      sentences.emplace_back(text + begin, ends[i] - begin);
      begin = ends[i];
    }
    std::string model;
    const LogLines log(heard, context);
    const auto status =
        sentencepiece::SentencePieceTrainer::Train(args, sentences, &model);
    failed = status.ok() ? 0 : 1;
    answer = failed ? status.ToString() : std::move(model);
  } catch (const std::bad_alloc &) {
    answer = "out of memory";
  } catch (const std::system_error &error) {
    answer = std::string("a thread cannot be started (") + error.what() + ")";
  } catch (const std::exception &error) {
    answer = error.what();
  }
  *result = static_cast<char *>(std::malloc(answer.size() + 1));
  *result_length = *result == nullptr ? 0 : answer.size();
  if (*result == nullptr) return 1;
  std::memcpy(*result, answer.data(), answer.size());
  return failed;
}

void altiplano_spm_free(char *result) { std::free(result); }

// The number of the script of a character, as SentencePiece counts scripts.
int altiplano_spm_script(uint32_t c) {
  return static_cast<int>(sentencepiece::unicode_script::GetScript(c));
}
}
