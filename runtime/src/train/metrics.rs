//! metrics.jsonl: a line of JSON for each event.
use crate::Error;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// An open file of metrics.
#[derive(Debug)]
pub(super) struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens or makes the file, and cuts it before the first line that is of a step after `step`, or no line at all: what a run that
    /// is resumed will write again, and what a killed one left half-written.
    pub fn open(path: &Path, step: u64) -> Result<Metrics, Error> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::io(path)(e)),
        };
        let is_kept = |line: &[u8]| {
            let value: Option<serde_json::Value> =
                line.strip_suffix(b"\n").and_then(|l| serde_json::from_slice(l).ok());
            value.is_some_and(|v| v["step"].as_u64().is_some_and(|s| s <= step))
        };
        let kept: usize = text.split_inclusive(|b| *b == b'\n').take_while(|line| is_kept(line)).map(<[u8]>::len).sum();
        let mut file =
            OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(Error::io(path))?;
        file.set_len(kept as u64).and_then(|()| file.seek(SeekFrom::End(0))).map_err(Error::io(path))?;
        Ok(Metrics { path: path.to_path_buf(), file })
    }
    /// Appends a line, in one write.
    pub fn add(&mut self, event: &impl serde::Serialize) -> Result<(), Error> {
        let mut line = serde_json::to_vec(event).map_err(|e| Error::file(&self.path, e.to_string()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(Error::io(&self.path))
    }
    /// Makes what was written durable.
    pub fn sync(&mut self) -> Result<(), Error> {
        self.file.sync_data().map_err(Error::io(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn later_and_broken_lines_are_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, 0).unwrap();
        for step in 1..=5 {
            metrics.add(&json!({ "step": step })).unwrap();
        }
        metrics.sync().unwrap();
        let read = || std::fs::read_to_string(&path).unwrap();
        let whole = read();
        drop(Metrics::open(&path, 9).unwrap());
        assert_eq!(read(), whole);
        for broken in ["{\"st", "{\"step\": 5}", "{\"other\": 1}\n", "\u{0}\u{0}\n"] {
            std::fs::write(&path, format!("{whole}{broken}")).unwrap();
            drop(Metrics::open(&path, 9).unwrap());
            assert_eq!(read(), whole, "{broken}");
        }
        Metrics::open(&path, 3).unwrap().add(&json!({ "step": 4, "again": true })).unwrap();
        assert_eq!(read(), "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"again\":true,\"step\":4}\n");
        assert!(Metrics::open(dir.path(), 0).is_err());
    }
}
