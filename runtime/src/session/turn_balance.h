// Divides time between the prompts and the answers of a scheduler.

#pragma once

namespace sala {

/// Who has used less than his share is next. A chunk of a prompt may take as long as a hundred steps of answers, so
/// turns are counted in seconds.
class TurnBalance {
 public:
  explicit TurnBalance(double prefill_share) : prefill_share_(prefill_share) {}

  bool is_for_prefill() const { return balance_ <= 0; }
  void spend_on_prefill(double seconds) { balance_ += seconds * (1 - prefill_share_); }
  void spend_on_answers(double seconds) { balance_ -= seconds * prefill_share_; }
  /// Where only one of them has work, nobody owes anything.
  void settle() { balance_ = 0; }

 private:
  double prefill_share_;
  double balance_ = 0;
};

}  // namespace sala
