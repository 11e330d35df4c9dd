//! Offline batches: OpenAI batch lines in a file, answers in another.
//!
//! An answer is appended as a whole line when it is there, under an `id` made of the number of its input
//! line. So a batch that was killed goes on: lines that have an answer are skipped, a line that was cut
//! short is removed and answered again, and none is lost or repeated. Answers that are errors are removed
//! too and made again: what failed may have been mended meanwhile. A request without a seed gets one
//! that follows from its line, so an answer does not depend on interruptions.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::app::App;
use crate::error::{Result, ServeError};
use crate::request_body::RequestBody;
use crate::{chat_completions, completions};

/// Longest line in bytes.
const LONGEST_LINE: usize = 64 << 20;

/// What a batch did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BatchReport {
    /// Lines answered now.
    pub answered: usize,
    /// Of these, answers that are errors.
    pub failed: usize,
    /// Lines that had been answered before.
    pub skipped: usize,
    /// The first line that failed and why, if one did.
    pub first_failure: Option<LineFailure>,
}

/// Why a line has an error for an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineFailure {
    /// The line of the input, from 1.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

/// How far a batch is.
#[derive(Debug, Clone, Copy)]
pub struct BatchProgress {
    /// Bytes of the input that are done.
    pub bytes: u64,
    /// Lines that are done.
    pub lines: u64,
}

/// A line of the input.
struct Line {
    number: usize,
    text: String,
    bytes: u64,
}

/// The name of the answer to a line.
fn answer_id(number: usize) -> String {
    format!("batch_req_{number}")
}

/// Answers every line of `input` that has no good answer in `output` yet, `concurrency` at a time.
///
/// # Errors
/// When a file cannot be read or written, when the output is another's or of another input, when the
/// engine breaks down.
pub async fn run(
    app: &Arc<App>,
    input: &Path,
    output: &Path,
    concurrency: usize,
    progress: impl Fn(BatchProgress),
) -> Result<BatchReport> {
    let mut lines = Lines::open(input)?;
    if are_one_file(input, output) {
        let reason = "is the input too; choose another --output";
        return Err(ServeError::file(output, reason));
    }
    let (mut out, answered) = open_output(output)?;
    let mut report = BatchReport::default();
    let mut done = BatchProgress { bytes: 0, lines: 0 };
    let mut open: JoinSet<Answered> = JoinSet::new();
    let mut at_end = false;
    loop {
        while !at_end && open.len() < concurrency.max(1) {
            let Some(line) = lines.next()? else {
                at_end = true;
                break;
            };
            let before = answered.get(&answer_id(line.number));
            if let Some(theirs) = before {
                let ours = custom_id_of(&line.text);
                if ours != *theirs {
                    let number = line.number;
                    let reason = format!(
                        "line {number} of {} has the custom_id {ours}, and its answer here that of \
                         {theirs}: these are the answers to another input; choose another --output",
                        input.display()
                    );
                    return Err(ServeError::file(output, reason));
                }
            }
            if line.text.trim().is_empty() || before.is_some() {
                report.skipped += usize::from(!line.text.trim().is_empty());
                done.bytes += line.bytes;
                done.lines += 1;
                progress(done);
                continue;
            }
            let (app, input) = (Arc::clone(app), input.to_path_buf());
            open.spawn(async move { answer(&app, &input, line).await });
        }
        let Some(finished) = open.join_next().await else { break };
        if let Some(reason) = app.engine.ended() {
            return Err(ServeError::EngineEnded { reason });
        }
        let Answered { line, bytes, value, failure } =
            finished.map_err(|error| ServeError::file(input, error))?;
        // One write: after a kill a line is there or is the last one and cut short.
        let text = format!("{value}\n");
        out.write_all(text.as_bytes()).map_err(|error| ServeError::file(output, error))?;
        report.answered += 1;
        if let Some(reason) = failure {
            report.failed += 1;
            if report.first_failure.as_ref().is_none_or(|first| first.line > line) {
                report.first_failure = Some(LineFailure { line, reason });
            }
        }
        done.bytes += bytes;
        done.lines += 1;
        progress(done);
    }
    out.sync_all().map_err(|error| ServeError::file(output, error))?;
    Ok(report)
}

/// A line with its answer.
struct Answered {
    line: usize,
    bytes: u64,
    value: Value,
    /// Why the answer is an error, if it is.
    failure: Option<String>,
}

async fn answer(app: &Arc<App>, input: &Path, line: Line) -> Answered {
    let (id, number) = (answer_id(line.number), line.number);
    let of_line = |reason: &str| format!("{}: line {number}: {reason}", input.display());
    let made = |value: Value, failure: Option<String>| Answered {
        line: number,
        bytes: line.bytes,
        value,
        failure,
    };
    let error = |code: &str, reason: &str| json!({"code": code, "message": of_line(reason)});
    let request = match read_request(&line) {
        Ok(request) => request,
        Err((custom_id, reason)) => {
            let error = error("invalid_request", &reason);
            let value = json!({"id": id, "custom_id": custom_id, "response": null, "error": error});
            return made(value, Some(reason));
        }
    };
    let request_id = app.new_id();
    let body = RequestBody::of_json(request.body);
    let answered = match request.chat {
        true => chat_completions::answer_whole(app, body, &request_id).await,
        false => completions::answer_whole(app, body, &request_id).await,
    };
    let (status, body, failure) = match answered {
        Ok(body) => {
            let failure = failed_choice(&body);
            (200, body, failure)
        }
        Err(error) => (error.status.as_u16(), error.to_json(), Some(error.message)),
    };
    // A request that was refused has its error in the body, as from a server.
    let error = match &failure {
        Some(reason) if status == 200 => error("not_finished", reason),
        _ => Value::Null,
    };
    let response = json!({"status_code": status, "request_id": request_id, "body": body});
    let custom_id = request.custom_id;
    made(json!({"id": id, "custom_id": custom_id, "response": response, "error": error}), failure)
}

/// Why an answer that came is none: a choice of it that did not come to an end of its own.
fn failed_choice(body: &Value) -> Option<String> {
    let choices = body.get("choices").and_then(Value::as_array)?;
    let failed = choices
        .iter()
        .find(|choice| choice["finish_reason"] == "error" || choice["finish_reason"] == "abort")?;
    let said = failed.get("error").and_then(Value::as_str);
    Some(said.unwrap_or("the answer was ended early").to_owned())
}

/// Whether a line of the output is an answer that is an error.
fn is_failure(answer: &Value) -> bool {
    let status = answer["response"]["status_code"].as_u64();
    !answer["error"].is_null()
        || !status.is_some_and(|status| (200..300).contains(&status))
        || failed_choice(&answer["response"]["body"]).is_some()
}

struct BatchRequest {
    custom_id: Value,
    chat: bool,
    body: Value,
}

/// Reads a line; on failure its `custom_id` as far as there is one, and what is wrong.
fn read_request(line: &Line) -> std::result::Result<BatchRequest, (Value, String)> {
    let number = line.number;
    let request: Value = serde_json::from_str(&line.text)
        .map_err(|error| (Value::Null, format!("is not JSON: {error}")))?;
    let custom_id = request.get("custom_id").cloned().unwrap_or_default();
    let wrong = |what: String| Err((custom_id.clone(), what));
    match request.get("method").and_then(Value::as_str) {
        None | Some("POST") => {}
        Some(other) => return wrong(format!("method: found {other:?}, expected POST")),
    }
    let chat = match request.get("url").and_then(Value::as_str) {
        Some("/v1/chat/completions") => true,
        Some("/v1/completions") => false,
        other => {
            let found = other.unwrap_or("none");
            return wrong(format!(
                "url: found {found:?}, expected /v1/completions or /v1/chat/completions"
            ));
        }
    };
    let Some(Value::Object(mut body)) = request.get("body").cloned() else {
        return wrong("body: expected an object".into());
    };
    if body.get("seed").is_none_or(Value::is_null) {
        // 53 bits, which every JSON reader keeps.
        let hash = blake3::hash(&(number as u64).to_le_bytes());
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hash.as_bytes()[..8]);
        body.insert("seed".to_owned(), json!(u64::from_le_bytes(bytes) >> 11));
    }
    Ok(BatchRequest { custom_id, chat, body: Value::Object(body) })
}

/// How a line of answers begins.
const BEGINNING: &[u8] = b"{\"id\":\"batch_req_";

/// Whether both names are of one file.
fn are_one_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The `custom_id` of a line of the input, as it is given.
fn custom_id_of(text: &str) -> Value {
    let value: Option<Value> = serde_json::from_str(text).ok();
    value.and_then(|value| value.get("custom_id").cloned()).unwrap_or_default()
}

/// Opens the output for appending, for this process alone, without the answers in it that are errors; the
/// names of the others, and the `custom_id` that each answers.
fn open_output(path: &Path) -> Result<(File, HashMap<String, Value>)> {
    let failed = |error: std::io::Error| ServeError::file(path, error);
    let mut file =
        OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed)?;
    lock(&file, path)?;
    let not_an_answer = |number: usize| {
        let reason = format!("line {number} is not an answer of a batch; choose another --output");
        ServeError::file(path, reason)
    };
    let mut answered = HashMap::new();
    let mut lines = 0;
    let mut whole = 0;
    // Where the answers are that stay.
    let mut kept: Vec<Range<u64>> = Vec::new();
    let mut reader = BufReader::new(&file);
    loop {
        let mut line = Vec::new();
        let read = reader
            .by_ref()
            .take(LONGEST_LINE as u64)
            .read_until(b'\n', &mut line)
            .map_err(failed)?;
        if read == 0 {
            break;
        }
        let known = line.len().min(BEGINNING.len());
        if line[..known] != BEGINNING[..known] {
            return Err(not_an_answer(lines + 1));
        }
        if line.last() != Some(&b'\n') {
            // Only the last line can have been cut short.
            if !reader.fill_buf().map_err(failed)?.is_empty() {
                let number = lines + 1;
                let reason = format!("line {number} has more than {LONGEST_LINE} bytes");
                return Err(ServeError::file(path, reason));
            }
            break;
        }
        let value: Option<Value> = serde_json::from_slice(&line).ok();
        let id = value.as_ref().and_then(|value| value.get("id")?.as_str().map(str::to_owned));
        match (id, value) {
            (Some(_), Some(value)) if is_failure(&value) => {}
            (Some(id), Some(value)) => {
                answered.insert(id, value.get("custom_id").cloned().unwrap_or_default());
                match kept.last_mut().filter(|range| range.end == whole) {
                    Some(range) => range.end += read as u64,
                    None => kept.push(whole..whole + read as u64),
                }
            }
            _ => return Err(not_an_answer(lines + 1)),
        }
        lines += 1;
        whole += read as u64;
    }
    drop(reader);
    if kept.iter().map(|range| range.end - range.start).sum::<u64>() < whole {
        file = without_failures(&file, path, &kept).map_err(failed)?;
    } else {
        // What a kill cut short is answered again.
        file.set_len(whole).map_err(failed)?;
    }
    file.seek(SeekFrom::End(0)).map_err(failed)?;
    Ok((file, answered))
}

/// Locks an output for this process.
fn lock(file: &File, path: &Path) -> Result<()> {
    file.try_lock().map_err(|error| {
        let reason = format!(
            "another process is writing it ({error}); wait until it ends, or choose another --output"
        );
        ServeError::file(path, reason)
    })
}

/// Puts a copy of the parts that stay in the place of `file`, at once: after a kill it is there or not.
fn without_failures(file: &File, path: &Path, kept: &[Range<u64>]) -> std::io::Result<File> {
    let path = path.canonicalize()?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".without-errors");
    let copy_path = path.with_file_name(name);
    let mut copy =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&copy_path)?;
    // Nobody takes the new file before this process has it.
    copy.try_lock()?;
    copy.set_len(0)?;
    let mut from = file;
    for range in kept {
        from.seek(SeekFrom::Start(range.start))?;
        std::io::copy(&mut from.take(range.end - range.start), &mut copy)?;
    }
    copy.set_permissions(file.metadata()?.permissions())?;
    copy.sync_all()?;
    std::fs::rename(&copy_path, &path)?;
    Ok(copy)
}

/// The lines of the input, read one by one.
struct Lines<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    number: usize,
}

impl<'a> Lines<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| ServeError::file(path, error))?;
        Ok(Self { path, reader: BufReader::new(file), number: 0 })
    }

    fn next(&mut self) -> Result<Option<Line>> {
        let mut bytes = Vec::new();
        let most = LONGEST_LINE as u64 + 1;
        let read = (&mut self.reader)
            .take(most)
            .read_until(b'\n', &mut bytes)
            .map_err(|error| ServeError::file(self.path, error))?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        if read as u64 == most {
            let reason = format!("line {} has more than {LONGEST_LINE} bytes", self.number);
            return Err(ServeError::file(self.path, reason));
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Some(Line { number: self.number, text, bytes: read as u64 }))
    }
}
