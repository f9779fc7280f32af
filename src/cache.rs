//! The compile cache of `rdc run MODEL.rdm`: artifacts under the user's cache folder, by a hash of all that decides them.
use anyhow::{Context, Result};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Artifacts may take this much together; the least recently used go first.
const LIMIT: u64 = 16 << 30;

/// What an artifact is made from, as a hash. A clash needs two equal 128-bit hashes.
pub struct Key {
    low: DefaultHasher,
    high: DefaultHasher,
}

impl Key {
    /// Starts with what every artifact depends on: this very executable.
    pub fn new() -> Key {
        let mut key = Key { low: DefaultHasher::new(), high: DefaultHasher::new() };
        key.high.write_u8(1);
        key.add(env!("CARGO_PKG_VERSION"));
        if let Ok(own) = std::env::current_exe() {
            key.add_file(&own);
        }
        key
    }
    /// Adds a value.
    pub fn add(&mut self, value: impl Hash) {
        value.hash(&mut self.low);
        value.hash(&mut self.high);
    }
    /// Adds the identity of a file: its absolute path, size and time of change.
    pub fn add_file(&mut self, path: &Path) {
        self.add(std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf()));
        if let Ok(meta) = std::fs::metadata(path) {
            self.add((meta.len(), meta.modified().ok()));
        }
    }
    /// Adds every file of a folder, in order of name.
    pub fn add_folder(&mut self, path: &Path) {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        files.sort();
        for file in files {
            self.add_file(&file);
        }
    }
    /// Where the artifact lies, if there is a cache folder at all.
    pub fn path(&self) -> Option<PathBuf> {
        Some(folder()?.join(format!("{:016x}{:016x}.rda", self.high.finish(), self.low.finish())))
    }
}

/// `$XDG_CACHE_HOME/rdc`, else `~/.cache/rdc`.
fn folder() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache"))).map(|p| p.join("rdc"))
}

/// Prepares the folder for a new entry.
pub fn prepare(entry: &Path) -> Result<()> {
    let folder = entry.parent().context("the cache entry has no folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create the compile cache {}", folder.display()))
}

/// Marks an entry as used now, so that others are removed before it.
pub fn touch(entry: &Path) {
    if let Ok(file) = std::fs::File::options().append(true).open(entry) {
        let _ = file.set_modified(SystemTime::now());
    }
}

/// Removes the least recently used entries until the rest fit; `keep` stays.
pub fn trim(keep: &Path) {
    let Some(folder) = keep.parent() else { return };
    let mut entries: Vec<(SystemTime, u64, PathBuf)> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|e| e == "rda"))
        .filter_map(|entry| {
            let meta = entry.metadata().ok()?;
            Some((meta.modified().ok()?, meta.len(), entry.path()))
        })
        .collect();
    entries.sort();
    let mut total: u64 = entries.iter().map(|e| e.1).sum();
    for (_, size, path) in entries {
        if total <= LIMIT {
            break;
        }
        if path != keep && std::fs::remove_file(&path).is_ok() {
            total -= size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_in_content_and_files() {
        let name = |text: &str| {
            let mut key = Key::new();
            key.add(text);
            key.path()
        };
        assert_eq!(name("a"), name("a"));
        assert_ne!(name("a"), name("b"));
    }
}
