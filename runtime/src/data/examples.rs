//! JSONL: one example per line, packed into rows.
use super::tokenizer::{self, Tokenizer};
use super::{BadLines, Dataset};
use crate::Error;
use rdc_ir::IGNORED_LABEL;
use serde::Deserialize;
use std::path::PathBuf;

/// Examples packed into rows in the order of the files: a row takes examples as long as they fit, and the rest of it has no
/// labels. (Examples of a row see each other, as in the packed data of pre-training.)
pub struct Examples {
    ids: Vec<i32>,
    labels: Vec<i32>,
    length: usize,
    vocabulary: usize,
    examples: usize,
    skipped: usize,
}

#[derive(Deserialize)]
struct Line {
    #[serde(alias = "question")]
    prompt: Option<String>,
    input: Option<String>,
    answer: Option<String>,
    labels: Option<String>,
    text: Option<String>,
}

impl Examples {
    /// Reads files of examples.
    ///
    /// # Errors
    /// If a file cannot be read; if a line is bad and such lines are refused; if no example is left.
    pub fn read(files: &[PathBuf], tokenizer: &Tokenizer, length: usize, bad: BadLines) -> Result<Examples, Error> {
        let mut all = Examples {
            ids: Vec::new(),
            labels: Vec::new(),
            length,
            vocabulary: tokenizer.vocabulary(),
            examples: 0,
            skipped: 0,
        };
        for path in files {
            for (number, line) in tokenizer::read(path)?.lines().enumerate() {
                if line.trim().is_empty() {
                    continue;
                }
                let example = encode(line, tokenizer).and_then(|example| match example.0.len() {
                    n if n > length => Err(format!("an example of {n} tokens does not fit into a row of {length}")),
                    _ => Ok(example),
                });
                match example {
                    Ok((ids, labels)) => all.push(&ids, &labels),
                    Err(_) if bad == BadLines::Skip => all.skipped += 1,
                    Err(e) => {
                        return Err(Error::Input(format!(
                            "{}:{}: {e} (bad_lines = \"skip\" leaves such lines out)",
                            path.display(),
                            number + 1
                        )));
                    }
                }
            }
        }
        if all.examples == 0 {
            let skipped = all.skipped;
            return Err(Error::Input(format!("{}: no example, {skipped} bad lines left out", files[0].display())));
        }
        all.end_row();
        Ok(all)
    }
    fn push(&mut self, ids: &[i32], labels: &[i32]) {
        if self.ids.len() % self.length + ids.len() > self.length {
            self.end_row();
        }
        self.ids.extend(ids);
        self.labels.extend(labels);
        self.examples += 1;
    }
    fn end_row(&mut self) {
        let full = self.ids.len().next_multiple_of(self.length);
        self.ids.resize(full, 0);
        self.labels.resize(full, IGNORED_LABEL);
    }
}

/// The ids of a line and the label of each.
fn encode(line: &str, tokenizer: &Tokenizer) -> Result<(Vec<i32>, Vec<i32>), String> {
    let line: Line = serde_json::from_str(line).map_err(|e| format!("not a JSON object of strings: {e}"))?;
    if let (Some(input), Some(labels)) = (&line.input, &line.labels) {
        let (input_chars, label_chars): (Vec<char>, Vec<char>) = (input.chars().collect(), labels.chars().collect());
        if input_chars.len() != label_chars.len() {
            return Err(format!("{} labels for {} characters", label_chars.len(), input_chars.len()));
        }
        let one = |c: char| match tokenizer.encode(c.encode_utf8(&mut [0; 4]))?[..] {
            [id] => Ok(id),
            _ => Err(format!("{c:?} is not one token, as aligned labels need")),
        };
        let ids = input_chars.into_iter().map(one).collect::<Result<_, _>>()?;
        let target = |c: char| if c == '.' { Ok(IGNORED_LABEL) } else { one(c) };
        return Ok((ids, label_chars.into_iter().map(target).collect::<Result<_, _>>()?));
    }
    let prompt = line.prompt.or(line.input);
    let (prompt, answer) = match (prompt, line.answer, line.text) {
        (Some(prompt), Some(answer), None) => (tokenizer.encode(&prompt)?, tokenizer.encode(&answer)?),
        (None, None, Some(text)) => (Vec::new(), tokenizer.encode(&text)?),
        _ => return Err("it has neither `prompt` and `answer`, nor `text`, nor `input` and `labels`".into()),
    };
    let mut ids = prompt;
    let begin = ids.len();
    ids.extend(answer);
    ids.extend(tokenizer.end());
    // The last token of the prompt predicts the first of the answer.
    let labels =
        (1..=ids.len()).map(|i| if i >= begin.max(1) && i < ids.len() { ids[i] } else { IGNORED_LABEL }).collect();
    Ok((ids, labels))
}

impl Dataset for Examples {
    fn rows(&self) -> Option<u64> {
        Some((self.ids.len() / self.length) as u64)
    }
    fn row(&self, index: u64, ids: &mut [i32], labels: &mut [i32]) -> Result<(), Error> {
        let at = index as usize * self.length;
        ids.copy_from_slice(&self.ids[at..at + self.length]);
        labels.copy_from_slice(&self.labels[at..at + self.length]);
        Ok(())
    }
    fn vocabulary(&self) -> usize {
        self.vocabulary
    }
    fn describe(&self) -> String {
        let skipped = if self.skipped > 0 { format!(", {} bad lines left out", self.skipped) } else { String::new() };
        format!("{} examples in {} rows of {}{skipped}", self.examples, self.ids.len() / self.length, self.length)
    }
}
