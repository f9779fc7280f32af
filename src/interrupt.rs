//! Ctrl-C leaves no half-written file.
//!
//! Files are written as `.NAME.PID.N.tmp` beside their destination and renamed when complete. SIGINT and SIGTERM are blocked in
//! every thread but one, which waits for them, removes this process's temporary files from the folders named, and ends it.
//!
//! `unsafe` calls signal functions of libc with sets that live on the stack; it must run before other threads start, which
//! inherit the blocked signals.
use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
/// Whether the first interrupt is left to the command, and whether it has come.
static DEFERRED: AtomicBool = AtomicBool::new(false);
static PENDING: AtomicBool = AtomicBool::new(false);

/// Call first in `main`. Also lets a closed pipe on stdout end the process silently.
pub fn install() {
    // SAFETY: see the module's documentation.
    let set = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGINT);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        set
    };
    std::thread::spawn(move || {
        let mut signal: c_int = 0;
        // SAFETY: the set and the integer outlive the call.
        while unsafe { libc::sigwait(&set, &mut signal) } == 0 {
            // The second one ends the process all the same.
            if DEFERRED.load(Ordering::Relaxed) && !PENDING.swap(true, Ordering::Relaxed) {
                continue;
            }
            if let Ok(folders) = FOLDERS.lock() {
                folders.iter().for_each(|folder| clean(folder));
            }
            std::process::exit(128 + signal);
        }
    });
}

/// From now on the first interrupt only sets [`pending`], so that a command can bring its work to an end.
pub fn defer() {
    DEFERRED.store(true, Ordering::Relaxed);
}

/// Whether an interrupt has come since [`defer`].
pub fn pending() -> bool {
    PENDING.load(Ordering::Relaxed)
}

/// From now on an interrupt removes temporary files of this process beside `file`.
pub fn watch(file: &Path) {
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(mut folders) = FOLDERS.lock() {
        folders.push(folder.to_path_buf());
    }
}

fn clean(folder: &Path) {
    let mine = format!(".{}.", std::process::id());
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(".tmp") && name.contains(&mine) {
            // A file that another thread has just renamed is not there any more.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
