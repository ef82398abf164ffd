//! What a file system must be able to do for ordinary programs.
#![allow(unsafe_code)] // mmap: a shared mapping is what is being checked

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, XattrFlags, getxattr, linkat, listxattr, mknodat,
    open, removexattr, renameat_with, setxattr,
};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

use crate::locks;

type Check = fn(&Path) -> io::Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("hard_links", hard_links),
    ("symbolic_links", symbolic_links),
    ("extended_attributes", extended_attributes),
    ("unix_sockets", unix_sockets),
    ("fifos", fifos),
    ("rename_over", rename_over),
    ("rename_flags", rename_flags),
    ("temporary_file_without_name", temporary_file_without_name),
    ("removed_while_open", removed_while_open),
    ("flock", |dir| locks::check("flock", dir)),
    ("fcntl_lock", |dir| locks::check("fcntl", dir)),
    ("shared_mapping", shared_mapping),
    ("append_and_truncate", append_and_truncate),
];

/// Runs every check in a folder of its own below `dir`, and prints `ok NAME` or `failed NAME: why`.
pub fn check_all(dir: &Path) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for (name, check) in CHECKS {
        let own = dir.join(name);
        match fs::create_dir(&own).and_then(|()| check(&own)) {
            Ok(()) => println!("ok {name}"),
            Err(error) => {
                println!("failed {name}: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    println!("checked {}", CHECKS.len());
    code
}

fn expect(true_is_right: bool, what: &str) -> io::Result<()> {
    if true_is_right {
        Ok(())
    } else {
        Err(io::Error::other(format!("not so: {what}")))
    }
}

fn hard_links(dir: &Path) -> io::Result<()> {
    let (one, two) = (dir.join("one"), dir.join("two"));
    fs::write(&one, "text")?;
    fs::hard_link(&one, &two)?;
    let (first, second) = (fs::metadata(&one)?, fs::metadata(&two)?);
    expect(
        first.ino() == second.ino(),
        "both names have one inode number",
    )?;
    expect(second.nlink() == 2, "the link count is 2")?;
    fs::remove_file(&one)?;
    expect(
        fs::read_to_string(&two)? == "text",
        "the other name still reads",
    )?;
    expect(
        fs::metadata(&two)?.nlink() == 1,
        "the link count is 1 again",
    )
}

fn symbolic_links(dir: &Path) -> io::Result<()> {
    let link = dir.join("link");
    symlink("target", &link)?;
    expect(
        fs::read_link(&link)?.as_os_str() == "target",
        "the link reads as made",
    )?;
    expect(
        fs::metadata(&link).is_err(),
        "a dangling link leads nowhere",
    )?;
    fs::write(dir.join("target"), "text")?;
    expect(
        fs::read_to_string(&link)? == "text",
        "the link leads to its target",
    )?;
    let absolute = dir.join("absolute");
    symlink(dir.join("target"), &absolute)?;
    expect(
        fs::read_to_string(&absolute)? == "text",
        "an absolute link leads to its target",
    )
}

fn extended_attributes(dir: &Path) -> io::Result<()> {
    let file = dir.join("file");
    fs::write(&file, "")?;
    setxattr(&file, "user.color", b"green", XattrFlags::CREATE)?;
    let mut value = [0; 64];
    let length = getxattr(&file, "user.color", &mut value)?;
    expect(&value[..length] == b"green", "the value reads as set")?;
    let mut names = [0; 256];
    let length = listxattr(&file, &mut names)?;
    expect(
        names[..length]
            .split(|&b| b == 0)
            .any(|name| name == b"user.color"),
        "the name is listed",
    )?;
    removexattr(&file, "user.color")?;
    expect(
        getxattr(&file, "user.color", &mut value) == Err(rustix::io::Errno::NODATA),
        "a removed attribute is gone",
    )
}

fn unix_sockets(dir: &Path) -> io::Result<()> {
    let path = dir.join("socket");
    let listener = UnixListener::bind(&path)?;
    expect(
        fs::metadata(&path)?.file_type().is_socket(),
        "the name is a socket's",
    )?;
    let mut client = UnixStream::connect(&path)?;
    let (mut server, _) = listener.accept()?;
    client.write_all(b"ping")?;
    let mut got = [0; 4];
    server.read_exact(&mut got)?;
    expect(&got == b"ping", "what was sent arrives")
}

fn fifos(dir: &Path) -> io::Result<()> {
    let path = dir.join("fifo");
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, &path, rustix::fs::FileType::Fifo, mode, 0)?;
    let writer = std::thread::spawn({
        let path = path.clone();
        move || File::options().write(true).open(path)?.write_all(b"ping")
    });
    expect(
        fs::read_to_string(&path)? == "ping",
        "what was written arrives",
    )?;
    writer.join().expect("the writer doesn't panic")
}

fn rename_over(dir: &Path) -> io::Result<()> {
    let (old, new) = (dir.join("old"), dir.join("new"));
    fs::write(&old, "old")?;
    let mut opened = File::open(&old)?;
    fs::write(&new, "new")?;
    fs::rename(&new, &old)?;
    expect(
        fs::read_to_string(&old)? == "new",
        "the name has the new file",
    )?;
    expect(!new.exists(), "the other name is gone")?;
    let mut text = String::new();
    opened.read_to_string(&mut text)?;
    expect(text == "old", "who had it open still reads the old file")
}

fn rename_flags(dir: &Path) -> io::Result<()> {
    let (one, two) = (dir.join("one"), dir.join("two"));
    fs::write(&one, "1")?;
    fs::write(&two, "2")?;
    expect(
        renameat_with(CWD, &one, CWD, &two, RenameFlags::NOREPLACE)
            == Err(rustix::io::Errno::EXIST),
        "RENAME_NOREPLACE replaces nothing",
    )?;
    renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE)?;
    expect(
        fs::read_to_string(&one)? == "2" && fs::read_to_string(&two)? == "1",
        "RENAME_EXCHANGE swaps two names",
    )
}

fn temporary_file_without_name(dir: &Path) -> io::Result<()> {
    let mode = Mode::RUSR | Mode::WUSR;
    let mut file = File::from(open(dir, OFlags::TMPFILE | OFlags::RDWR, mode)?);
    file.write_all(b"text")?;
    expect(fs::read_dir(dir)?.next().is_none(), "it has no name")?;
    let name = dir.join("named");
    let by_fd = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    linkat(CWD, by_fd, CWD, &name, AtFlags::SYMLINK_FOLLOW)?;
    expect(
        fs::read_to_string(&name)? == "text",
        "it reads under the name it was given",
    )
}

fn removed_while_open(dir: &Path) -> io::Result<()> {
    let path = dir.join("file");
    fs::write(&path, "text")?;
    let file = File::options().read(true).write(true).open(&path)?;
    fs::remove_file(&path)?;
    file.write_all_at(b"TEXT", 0)?;
    let mut got = [0; 4];
    file.read_exact_at(&mut got, 0)?;
    expect(&got == b"TEXT", "an open file outlives its name")?;
    expect(file.metadata()?.nlink() == 0, "the link count is 0")
}

fn shared_mapping(dir: &Path) -> io::Result<()> {
    const LENGTH: usize = 1 << 20;
    let path = dir.join("file");
    let file = File::create_new(&path)?;
    file.set_len(LENGTH as u64)?;
    let map = |file: &File| {
        // SAFETY: a new mapping at an address of the kernel's choice touches nobody's memory.
        unsafe {
            mmap(
                std::ptr::null_mut(),
                LENGTH,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        }
    };
    let first = map(&file)?.cast::<u8>();
    let second = map(&File::options().read(true).write(true).open(&path)?)?.cast::<u8>();
    // SAFETY: both mappings are LENGTH long, live until the munmap below, and no reference to
    // their bytes exists.
    let seen = unsafe {
        first.add(LENGTH - 1).write_volatile(42);
        let seen = second.add(LENGTH - 1).read_volatile();
        msync(first.cast(), LENGTH, MsyncFlags::SYNC)?;
        seen
    };
    let mut got = [0; 1];
    file.read_exact_at(&mut got, LENGTH as u64 - 1)?;
    // SAFETY: nobody uses the mappings after this.
    unsafe {
        munmap(first.cast(), LENGTH)?;
        munmap(second.cast(), LENGTH)?;
    }
    expect(seen == 42, "one mapping sees what another wrote")?;
    expect(got == [42], "read sees what a mapping wrote")
}

fn append_and_truncate(dir: &Path) -> io::Result<()> {
    let path = dir.join("file");
    fs::write(&path, "one")?;
    File::options()
        .append(true)
        .open(&path)?
        .write_all(b"two")?;
    expect(
        fs::read_to_string(&path)? == "onetwo",
        "O_APPEND writes at the end",
    )?;
    let file = File::options().write(true).open(&path)?;
    file.set_len(2)?;
    file.set_len(4)?;
    expect(
        fs::read(&path)? == b"on\0\0",
        "what was cut off reads as zeros",
    )
}
