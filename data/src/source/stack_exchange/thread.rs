//! A question and its answers as a document.

use serde_json::{Map, Value};

use super::post::Post;
use super::{StackExchangeSource, ThreadLayout};
use crate::document::{Document, Reason, metadata_text};
use crate::source::{Record, Rejection};

/// No answer is left.
const UNANSWERED: Reason = Reason::unwanted("unanswered");

impl StackExchangeSource {
    /// The document of `question`. Its answers are sorted by score, highest first; of equal
    /// scores the accepted one comes first, then the smaller id.
    pub(super) fn thread(
        &self,
        source: &str,
        site: &str,
        question: Post,
        mut answers: Vec<Post>,
    ) -> Record {
        let total = answers.len();
        if let Some(least) = self.min_answer_score {
            answers.retain(|answer| answer.score >= least);
        }
        answers.retain(|answer| !answer.body.is_empty());
        let accepted = question.accepted;
        answers.sort_by_key(|answer| {
            (std::cmp::Reverse(answer.score), Some(answer.id) != accepted, answer.id)
        });
        answers.truncate(self.max_answers.unwrap_or(usize::MAX));
        let id = format!("{site}/{}", question.id);
        let reject = |reason, detail| {
            Record::Rejected(Rejection {
                reason,
                offset: question.offset,
                bytes: question.body.len() as u64,
                detail,
            })
        };
        if answers.is_empty() && !self.keep_unanswered {
            return reject(UNANSWERED, format!("{id}: {total} answers, none of them kept"));
        }
        let text = self.text(&question, &answers);
        if question.title.trim().is_empty() && question.body.is_empty() && answers.is_empty() {
            return reject(Reason::EMPTY, id);
        }
        let url = format!("https://{site}/questions/{}", question.id);
        Record::Document(Document {
            id,
            text,
            source: source.to_owned(),
            url: Some(url),
            created: rfc_3339(&question.created),
            metadata: Some(metadata_text(metadata(&question, &answers, total))),
            ..Document::default()
        })
    }

    fn text(&self, question: &Post, answers: &[Post]) -> String {
        // The title is plain text, unlike the body.
        let title = question.title.trim();
        let bodies: usize = answers.iter().map(|answer| answer.body.len() + 8).sum();
        let mut text = String::with_capacity(title.len() + question.body.len() + bodies + 16);
        let parts = [title, &question.body].into_iter().filter(|part| !part.is_empty());
        match self.layout {
            ThreadLayout::RedPajama => {
                text.push_str("Q:");
                for part in parts {
                    text.push(' ');
                    text.push_str(part);
                }
                for answer in answers {
                    text.push_str("\nA: ");
                    text.push_str(&answer.body);
                }
            }
            ThreadLayout::Eleuther => {
                text.push_str("Q:");
                for part in parts {
                    text.push_str("\n\n");
                    text.push_str(part);
                }
                for answer in answers {
                    text.push_str("\n\nA:\n\n");
                    text.push_str(&answer.body);
                }
            }
        }
        text
    }
}

fn metadata(question: &Post, answers: &[Post], total: usize) -> Value {
    let mut metadata = Map::new();
    let mut insert = |key: &str, value: Value| metadata.insert(key.to_owned(), value);
    insert("question_score", question.score.into());
    insert("answer_scores", answers.iter().map(|answer| answer.score).collect());
    insert("answer_ids", answers.iter().map(|answer| answer.id).collect());
    insert("answers_left_out", (total - answers.len()).into());
    insert("tags", question.tags().into());
    for (key, value) in [
        ("creation_date", &question.created),
        ("closed_date", &question.closed),
        ("license", &question.license),
    ] {
        if !value.is_empty() {
            insert(key, value.as_str().into());
        }
    }
    if let Some(accepted) = question.accepted {
        insert("accepted", accepted.into());
    }
    Value::Object(metadata)
}

/// The dump's times are UTC without saying so.
fn rfc_3339(time: &str) -> Option<String> {
    match time {
        "" => None,
        _ if time.ends_with('Z') => Some(time.to_owned()),
        _ => Some(format!("{time}Z")),
    }
}
