//! What can go wrong, in words for the person at the command line.
use std::path::{Path, PathBuf};

/// An error of the runtime. `Display` says what and where; no prefix is needed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused an operation on a file.
    #[error("{}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: std::io::Error,
    },
    /// A file is not what it should be: a damaged artifact, a corrupt checkpoint, an unreadable tensor file.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// An input or option does not fit the model.
    #[error("{0}")]
    Input(String),
    /// A program that the runtime cannot execute, or memory that the system does not give.
    #[error("{0}")]
    Program(String),
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
        let path = path.to_path_buf();
        move |reason| Error::Io { path, reason }
    }
    pub(crate) fn file(path: &Path, message: impl Into<String>) -> Error {
        Error::File { path: path.to_path_buf(), message: message.into() }
    }
}
