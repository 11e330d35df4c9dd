//! What all verdicts say together.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::verdicts::Outcome;
use crate::config::JudgeMode;

/// Wins, losses and ties of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Comparisons won in both orders.
    pub wins: u64,
    /// Comparisons lost in both orders.
    pub losses: u64,
    /// All other comparisons with two verdicts.
    pub ties: u64,
}

impl Tally {
    fn total(&self) -> u64 {
        self.wins + self.losses + self.ties
    }

    /// Share of the comparisons that are won; none without comparisons.
    pub fn win_rate(&self) -> Option<f64> {
        (self.total() > 0).then(|| self.wins as f64 / self.total() as f64)
    }

    /// The same with a tie as half a win.
    pub fn adjusted_win_rate(&self) -> Option<f64> {
        let won = self.wins as f64 + self.ties as f64 / 2.0;
        (self.total() > 0).then(|| won / self.total() as f64)
    }
}

/// What the comparisons say of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PairScore {
    /// All comparisons.
    #[serde(flatten)]
    pub tally: Tally,
    /// Share of the comparisons that are won.
    pub win_rate: Option<f64>,
    /// The same with a tie as half a win.
    pub adjusted_win_rate: Option<f64>,
    /// By what the questions are about.
    pub categories: BTreeMap<String, Tally>,
}

/// The points of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ModelScore {
    /// Mean of all points.
    pub mean: Option<f64>,
    /// Mean by turn, from the first.
    pub turns: Vec<Option<f64>>,
    /// Mean by what the questions are about.
    pub categories: BTreeMap<String, f64>,
    /// Answers with points.
    pub rated: u64,
    /// Answers of which the judge's text has no points.
    pub left_out: u64,
    #[serde(skip)]
    points: Vec<(String, usize, f64)>,
}

/// The report of a judged evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JudgeReport {
    /// Names of the models, in the order of the configuration.
    pub models: Vec<String>,
    /// By model, where answers were compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparisons: Option<Vec<PairScore>>,
    /// By model, where answers were rated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratings: Option<Vec<ModelScore>>,
    /// Comparisons left out because one of the texts has no verdict.
    pub left_out: u64,
    /// Share of the comparisons whose verdict changes with the order of the answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flipped: Option<f64>,
    /// Mean characters of the answers that won.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub winner_chars: Option<f64>,
    /// Mean characters of those that lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loser_chars: Option<f64>,
    #[serde(skip)]
    flips: u64,
    #[serde(skip)]
    judged: u64,
    /// Decided comparisons, characters of their winners and of their losers.
    #[serde(skip)]
    decided: (u64, u64, u64),
}

impl JudgeReport {
    /// The report of nothing yet.
    pub(super) fn new(mode: JudgeMode, models: impl Iterator<Item = String>) -> Self {
        let models: Vec<String> = models.collect();
        let count = models.len();
        Self {
            models,
            comparisons: (mode == JudgeMode::Pairwise).then(|| vec![PairScore::default(); count]),
            ratings: (mode == JudgeMode::Single).then(|| vec![ModelScore::default(); count]),
            left_out: 0,
            flipped: None,
            winner_chars: None,
            loser_chars: None,
            flips: 0,
            judged: 0,
            decided: (0, 0, 0),
        }
    }

    /// Counts a comparison of two models whose answers have `chars` characters.
    pub(super) fn compare(
        &mut self,
        models: [usize; 2],
        category: &str,
        outcome: Outcome,
        flipped: Option<bool>,
        chars: [usize; 2],
    ) {
        let winner = match outcome {
            Outcome::First => Some(0),
            Outcome::Second => Some(1),
            Outcome::Tie => None,
            Outcome::LeftOut => {
                self.left_out += 1;
                return;
            }
        };
        self.judged += 1;
        self.flips += u64::from(flipped == Some(true));
        self.flipped = Some(self.flips as f64 / self.judged as f64);
        if let Some(winner) = winner {
            let (count, won, lost) = &mut self.decided;
            *count += 1;
            *won += chars[winner] as u64;
            *lost += chars[1 - winner] as u64;
            self.winner_chars = Some(*won as f64 / *count as f64);
            self.loser_chars = Some(*lost as f64 / *count as f64);
        }
        let Some(scores) = &mut self.comparisons else { return };
        for (place, &model) in models.iter().enumerate() {
            let score = &mut scores[model];
            let in_category = score.categories.entry(category.to_owned()).or_default();
            for tally in [&mut score.tally, in_category] {
                match winner {
                    None => tally.ties += 1,
                    Some(winner) if winner == place => tally.wins += 1,
                    Some(_) => tally.losses += 1,
                }
            }
            score.win_rate = score.tally.win_rate();
            score.adjusted_win_rate = score.tally.adjusted_win_rate();
        }
    }

    /// Counts the points of an answer.
    pub(super) fn rate(&mut self, model: usize, category: &str, turn: usize, points: Option<f64>) {
        let Some(scores) = &mut self.ratings else { return };
        let score = &mut scores[model];
        if score.turns.len() <= turn {
            score.turns.resize(turn + 1, None);
        }
        let Some(points) = points else {
            score.left_out += 1;
            self.left_out += 1;
            return;
        };
        score.rated += 1;
        score.points.push((category.to_owned(), turn, points));
        let mean = |wanted: &dyn Fn(&(String, usize, f64)) -> bool| {
            let of: Vec<f64> =
                score.points.iter().filter(|one| wanted(one)).map(|one| one.2).collect();
            of.iter().sum::<f64>() / of.len() as f64
        };
        let [all, in_turn, in_category] =
            [mean(&|_| true), mean(&|one| one.1 == turn), mean(&|one| one.0 == category)];
        score.mean = Some(all);
        score.turns[turn] = Some(in_turn);
        score.categories.insert(category.to_owned(), in_category);
    }
}

impl fmt::Display for JudgeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: Option<f64>| match share {
            Some(share) => format!("{:.1}%", 100.0 * share),
            None => "-".to_owned(),
        };
        let number = |value: Option<f64>| match value {
            Some(value) => format!("{value:.2}"),
            None => "-".to_owned(),
        };
        if let Some(scores) = &self.comparisons {
            writeln!(
                f,
                "{:<24} {:>6} {:>6} {:>6} {:>9} {:>18}",
                "model", "wins", "losses", "ties", "win rate", "ties as half a win"
            )?;
            let row = |f: &mut fmt::Formatter<'_>, name: &str, tally: &Tally| {
                let Tally { wins, losses, ties } = tally;
                let (rate, adjusted) = (tally.win_rate(), tally.adjusted_win_rate());
                let (rate, adjusted) = (percent(rate), percent(adjusted));
                writeln!(f, "{name:<24} {wins:>6} {losses:>6} {ties:>6} {rate:>9} {adjusted:>18}")
            };
            for (name, score) in self.models.iter().zip(scores) {
                row(f, name, &score.tally)?;
                for (category, tally) in &score.categories {
                    row(f, &format!("  {category}"), tally)?;
                }
            }
            writeln!(f, "left out, for want of a verdict: {}", self.left_out)?;
            writeln!(f, "verdicts that change with the order: {}", percent(self.flipped))?;
            let (won, lost) = (number(self.winner_chars), number(self.loser_chars));
            writeln!(f, "characters of an answer that won: {won}, that lost: {lost}")?;
        }
        if let Some(scores) = &self.ratings {
            for (name, score) in self.models.iter().zip(scores) {
                let turns: Vec<String> = score.turns.iter().map(|mean| number(*mean)).collect();
                writeln!(
                    f,
                    "{name:<24} {:>6} points, by turn {}; {} answers, {} left out",
                    number(score.mean),
                    turns.join(" "),
                    score.rated,
                    score.left_out
                )?;
                for (category, mean) in &score.categories {
                    writeln!(f, "  {category:<22} {mean:>6.2}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names() -> impl Iterator<Item = String> {
        ["a", "b"].map(str::to_owned).into_iter()
    }

    #[test]
    fn wins_losses_and_ties_add_up() {
        let mut report = JudgeReport::new(JudgeMode::Pairwise, names());
        report.compare([0, 1], "math", Outcome::First, Some(false), [10, 4]);
        report.compare([0, 1], "math", Outcome::Second, Some(false), [2, 8]);
        report.compare([0, 1], "stem", Outcome::First, Some(false), [6, 6]);
        report.compare([0, 1], "stem", Outcome::Tie, Some(true), [1, 1]);
        report.compare([0, 1], "stem", Outcome::LeftOut, None, [1, 1]);
        let scores = report.comparisons.as_ref().unwrap();
        assert_eq!(scores[0].tally, Tally { wins: 2, losses: 1, ties: 1 });
        assert_eq!(scores[1].tally, Tally { wins: 1, losses: 2, ties: 1 });
        assert_eq!((scores[0].win_rate, scores[0].adjusted_win_rate), (Some(0.5), Some(0.625)));
        assert_eq!(scores[1].adjusted_win_rate, Some(0.375));
        assert_eq!(scores[0].categories["math"], Tally { wins: 1, losses: 1, ties: 0 });
        assert_eq!((report.left_out, report.flipped), (1, Some(0.25)));
        assert_eq!((report.winner_chars, report.loser_chars), (Some(8.0), Some(4.0)));
        assert!(report.to_string().contains("left out, for want of a verdict: 1"));
    }

    #[test]
    fn points_have_their_means() {
        let mut report = JudgeReport::new(JudgeMode::Single, names());
        for (turn, points) in [(0, Some(4.0)), (1, Some(8.0)), (0, Some(6.0)), (1, None)] {
            report.rate(0, "math", turn, points);
        }
        let scores = report.ratings.as_ref().unwrap();
        assert_eq!((scores[0].mean, scores[0].rated, scores[0].left_out), (Some(6.0), 3, 1));
        assert_eq!(scores[0].turns, [Some(5.0), Some(8.0)]);
        assert_eq!(scores[0].categories["math"], 6.0);
        assert_eq!(scores[1].mean, None);
    }
}
