// Reaches SentencePiece's trainer, which has no C interface. The declarations repeat those of
// SentencePiece 0.2.1 that are used here; names and types are part of the linked symbols, so a
// version that differs in them does not link.

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
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

class SentencePieceTrainer {
 public:
  static util::Status Train(std::string_view args,
                            const std::vector<std::string> &sentences,
                            std::string *serialized_model_proto);
};
}  // namespace sentencepiece

extern "C" {

// Only fatal messages: everything else comes back as a status.
void altiplano_spm_quiet() { sentencepiece::logging::SetMinLogLevel(3); }

// Trains on `count` sentences: sentence i ends before byte ends[i] of `text` and begins where the
// one before it ends. Returns 0 and the model, or 1 and a message; both are freed with `free`.
int altiplano_spm_train(const char *args, const char *text, const size_t *ends,
                        size_t count, char **result, size_t *result_length) {
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
    const auto status =
        sentencepiece::SentencePieceTrainer::Train(args, sentences, &model);
    failed = status.ok() ? 0 : 1;
    answer = failed ? status.ToString() : std::move(model);
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
}
