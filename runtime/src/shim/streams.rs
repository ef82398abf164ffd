//! A process's standard streams, by the names that containerd gives them: fifos, mostly, whose other ends are containerd's
//! or a client's.
//!
//! They are opened here and handed to the VM process, which reads and writes them itself. The shim keeps an end of each
//! fifo too: so a reader that goes away for a while (containerd is started again) doesn't end the container's output, and
//! its input ends when that is asked for, and not with the first client that goes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;

use hull_protocol::terminal::Size;
use hull_runtime::sandbox::TerminalStreams;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::error::Error;

/// The names.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Empty: there is none.
    pub stdin: String,
    /// The same.
    pub stdout: String,
    /// The same. A terminal has none.
    pub stderr: String,
    /// Whether the process has a terminal, which reads stdin and writes to stdout.
    pub terminal: bool,
}

/// What the VM process gets.
#[derive(Debug)]
pub enum Streams {
    /// stdin, stdout and stderr.
    Plain([OwnedFd; 3]),
    /// A terminal's.
    Terminal(TerminalStreams),
}

/// What the shim keeps of them, until the process is deleted.
#[derive(Debug, Default)]
pub struct Kept {
    /// The shim's own end of stdin. Without it, the process's input ends with the last client.
    input: Option<OwnedFd>,
    /// Readers that read nothing.
    _readers: Vec<OwnedFd>,
    /// Where the guest hears of the terminal's size.
    sizes: Option<OwnedFd>,
    /// The terminal's text, whose relay ends with it.
    text: Option<UnixStream>,
}

/// Opens them.
///
/// # Errors
/// When one isn't there, or is named in a way that isn't known.
pub fn open(names: &Names) -> Result<(Streams, Kept), Error> {
    let mut kept = Kept::default();
    let stdin = open_input(&names.stdin, &mut kept)?;
    let stdout = open_output(&names.stdout, &mut kept)?;
    if names.terminal {
        return Ok((Streams::Terminal(terminal(stdin, stdout, &mut kept)?), kept));
    }
    let stderr = match names.stderr == names.stdout {
        true => stdout.try_clone().map_err(Error::host("share a stream"))?,
        false => open_output(&names.stderr, &mut kept)?,
    };
    Ok((Streams::Plain([stdin, stdout, stderr]), kept))
}

impl Kept {
    /// Lets the process's input end, once nobody else holds it open.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Tells the guest the terminal's size.
    ///
    /// # Errors
    /// When the process has no terminal.
    pub fn resize(&self, columns: u32, rows: u32) -> Result<(), Error> {
        let Some(sizes) = &self.sizes else {
            return Err(Error::state("the process has no terminal"));
        };
        let small = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        let size = Size {
            rows: small(rows),
            columns: small(columns),
        };
        // A guest that doesn't read thousands of sizes doesn't get the next one either; one that is gone needs none.
        if let Err(e) = rustix::io::write(sizes, &size.encode()) {
            log::debug!("a terminal's size is not told: {e}");
        }
        Ok(())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(text) = &self.text {
            let _ = text.shutdown(Shutdown::Both);
        }
    }
}

fn open_file(path: &Path, flags: OFlags) -> Result<OwnedFd, Error> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
    let opened = openat(CWD, path, flags, Mode::from_raw_mode(0o644));
    opened.map_err(|e| Error::file("open", path)(e.into()))
}

fn is_fifo(path: &Path) -> Result<bool, Error> {
    let found = fs::metadata(path).map_err(Error::file("open", path))?;
    Ok(found.file_type().is_fifo())
}

fn open_input(name: &str, kept: &mut Kept) -> Result<OwnedFd, Error> {
    if name.is_empty() {
        return open_file(Path::new("/dev/null"), OFlags::RDONLY);
    }
    let path = Path::new(name);
    let input = open_file(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
    if is_fifo(path)? {
        kept.input = Some(open_file(path, OFlags::WRONLY | OFlags::NONBLOCK)?);
    }
    Ok(input)
}

fn open_output(name: &str, kept: &mut Kept) -> Result<OwnedFd, Error> {
    if name.is_empty() {
        return open_file(Path::new("/dev/null"), OFlags::WRONLY);
    }
    let (scheme, path) = name.split_once("://").unwrap_or(("fifo", name));
    let path = PathBuf::from(path);
    match scheme {
        "fifo" if is_fifo(&path)? => {
            // First: a fifo that nobody reads can't be opened for writing.
            (kept._readers).push(open_file(&path, OFlags::RDONLY | OFlags::NONBLOCK)?);
            open_file(&path, OFlags::WRONLY)
        }
        "fifo" => open_file(&path, OFlags::WRONLY | OFlags::APPEND),
        "file" => {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(Error::file("make the folder", folder))?;
            }
            open_file(&path, OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE)
        }
        _ => Err(Error::Invalid(format!(
            "the stream {name}: hull knows fifos and file:// paths"
        ))),
    }
}

/// Joins a terminal's two streams to the one that the VM process takes.
fn terminal(stdin: OwnedFd, stdout: OwnedFd, kept: &mut Kept) -> Result<TerminalStreams, Error> {
    let pair = || -> io::Result<_> {
        let (own, text) = UnixStream::pair()?;
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (sizes, own_sizes) = rustix::pipe::pipe_with(flags)?;
        let text = TerminalStreams {
            text: text.into(),
            sizes,
        };
        Ok((own, own_sizes, text))
    };
    let (own, sizes, streams) = pair().map_err(Error::host("make a terminal's streams"))?;
    kept.sizes = Some(sizes);
    let clones = || Ok((own.try_clone()?, own.try_clone()?));
    let (typed, shown) = clones().map_err(Error::host("share a stream"))?;
    kept.text = Some(own);
    // What is typed comes to its end with the client, and the terminal stays.
    relay("terminal-in", File::from(stdin), typed)?;
    relay("terminal-out", shown, File::from(stdout))?;
    Ok(streams)
}

/// Copies from one to the other up to the end of either, on a thread of its own.
fn relay(
    name: &'static str,
    mut from: impl io::Read + AsFd + Send + 'static,
    mut to: impl Write + AsFd + Send + 'static,
) -> Result<(), Error> {
    let copy = move || {
        let mut buffer = [0; 4096];
        // A fifo that was opened without waiting may have nothing yet.
        while let Ok(true) = wait_readable(from.as_fd(), to.as_fd()) {
            match from.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) if to.write_all(&buffer[..length]).is_err() => return,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return log::debug!("{name}: {e}"),
            }
        }
    };
    let thread = thread::Builder::new()
        .name(name.to_owned())
        .stack_size(64 << 10);
    let spawned = thread.spawn(copy);
    spawned.map(drop).map_err(Error::host("start a thread"))
}

/// Waits until there is something to read, or its end. False if the other stream comes to its end first.
fn wait_readable(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    loop {
        let mut both = [
            PollFd::new(&from, PollFlags::IN),
            PollFd::new(&to, PollFlags::empty()),
        ];
        match poll(&mut both, None) {
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
            Ok(_) if !both[1].revents().is_empty() => return Ok(false),
            Ok(_) => return Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn fifo(folder: &Path, name: &str) -> String {
        let path = folder.join(name);
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(CWD, &path, mode).expect("a fifo");
        path.to_string_lossy().into_owned()
    }

    #[test]
    fn fifos_stay_open_while_their_readers_come_and_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let names = Names {
            stdin: fifo(folder.path(), "in"),
            stdout: fifo(folder.path(), "out"),
            ..Names::default()
        };
        // Nobody is there yet, and nothing waits.
        let (streams, mut kept) = open(&names).expect("opened");
        let Streams::Plain([stdin, stdout, _]) = streams else {
            panic!("no terminal was asked for");
        };
        let mut stdout = File::from(stdout);
        stdout.write_all(b"first").expect("written");
        let mut reader = File::open(&names.stdout).expect("a reader");
        let mut text = [0; 5];
        reader.read_exact(&mut text).expect("read");
        drop(reader);
        stdout.write_all(b"later").expect("no broken pipe");

        // A client writes and goes; the input ends when it is said to.
        let mut client = File::options()
            .write(true)
            .open(&names.stdin)
            .expect("a client");
        client.write_all(b"typed").expect("written");
        drop(client);
        let mut stdin = File::from(stdin);
        stdin.read_exact(&mut text).expect("read");
        let end = stdin.read(&mut text).expect_err("no end");
        assert_eq!(end.kind(), io::ErrorKind::WouldBlock);
        kept.close_input();
        assert_eq!(stdin.read(&mut text).expect("the end"), 0);
    }

    #[test]
    fn streams_may_be_files_or_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("logs/out");
        let file = format!("file://{}", path.display());
        let names = Names {
            stdout: file.clone(),
            stderr: file,
            ..Names::default()
        };
        let (Streams::Plain([_, stdout, stderr]), _kept) = open(&names).expect("opened") else {
            panic!("no terminal was asked for");
        };
        File::from(stdout).write_all(b"a").expect("written");
        File::from(stderr).write_all(b"b").expect("written");
        assert_eq!(fs::read_to_string(path).expect("a file"), "ab");
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let names = |stdout: &str| Names {
            stdout: stdout.to_owned(),
            ..Names::default()
        };
        assert!(open(&names("binary:///bin/logger")).is_err());
        assert!(open(&names("/none/such")).is_err());
    }

    #[test]
    fn a_terminal_has_one_stream_for_both() {
        let folder = tempfile::tempdir().expect("a folder");
        let names = Names {
            stdin: fifo(folder.path(), "in"),
            stdout: fifo(folder.path(), "out"),
            terminal: true,
            ..Names::default()
        };
        let (Streams::Terminal(streams), kept) = open(&names).expect("opened") else {
            panic!("a terminal");
        };
        let mut guest = UnixStream::from(streams.text);
        let mut client = File::options()
            .write(true)
            .open(&names.stdin)
            .expect("a client");
        client.write_all(b"typed").expect("written");
        let mut text = [0; 5];
        guest.read_exact(&mut text).expect("read");
        assert_eq!(&text, b"typed");
        guest.write_all(b"shown").expect("written");
        let mut reader = File::open(&names.stdout).expect("a reader");
        reader.read_exact(&mut text).expect("read");
        assert_eq!(&text, b"shown");
        kept.resize(80, 25).expect("resized");
        let mut size = [0; 4];
        rustix::io::read(&streams.sizes, &mut size).expect("a size");
        assert_eq!(size, [25, 0, 80, 0]);
    }
}
