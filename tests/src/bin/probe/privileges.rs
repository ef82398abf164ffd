//! Who may do what to a file, beyond its mode: ACLs, set-id bits, file capabilities, trusted attributes.
//!
//! Root makes the files; uid and gid 1000 or 1001, without capabilities, try them.
#![allow(unsafe_code)] // bare system calls that change the users of one thread

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{
    FallocateFlags, XattrFlags, copy_file_range, fallocate, getxattr, lgetxattr, listxattr,
    lsetxattr, removexattr, setxattr,
};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const CAPABILITY: &str = "security.capability";

/// Does `what` as an ordinary user: a thread of its own, whose users alone change.
fn as_user<T: Send>(id: u32, what: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let become_user = || {
        let id = id as libc::c_long;
        // SAFETY: the calls take values, or no list at all, and change this thread only.
        let failed = unsafe {
            libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u8>())
                | libc::syscall(libc::SYS_setresgid, id, id, id)
                | libc::syscall(libc::SYS_setresuid, id, id, id)
        };
        if failed == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| become_user().and_then(|()| what()));
        thread.join().expect("it doesn't panic")
    })
}

/// An operation's outcome in a word.
fn outcome<T>(result: io::Result<T>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// An ACL as the kernel's interface has it: version 2, then tag, permissions and id of each entry.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

const NOBODY: u32 = u32::MAX;
const OWNER: u16 = 1;
const USER: u16 = 2;
const GROUP: u16 = 4;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;

/// What the named user gets, beside an owner who may do all and others who get `others`.
fn acl_for(user: u32, permissions: u16, others: u16) -> Vec<u8> {
    acl(&[
        (OWNER, 7, NOBODY),
        (USER, permissions, user),
        (GROUP, 0, NOBODY),
        (MASK, 7, NOBODY),
        (OTHERS, others, NOBODY),
    ])
}

/// Prints what ACLs let users do.
pub fn acls(dir: &Path) -> io::Result<()> {
    fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    let (granted, denied) = (dir.join("granted"), dir.join("denied"));
    for path in [&granted, &denied] {
        fs::write(path, "text")?;
    }
    setxattr(&granted, ACCESS, &acl_for(1000, 6, 0), XattrFlags::empty())?;
    setxattr(&denied, ACCESS, &acl_for(1001, 0, 6), XattrFlags::empty())?;
    for (path, user) in [
        (&granted, 1000),
        (&granted, 1001),
        (&denied, 1000),
        (&denied, 1001),
    ] {
        let name = path.file_name().unwrap_or_default().display();
        let read = as_user(user, || fs::read(path));
        let written = as_user(user, || File::options().append(true).open(path));
        println!(
            "{name} {user} reads {}, writes {}",
            outcome(read),
            outcome(written)
        );
    }
    let mode = fs::metadata(&granted)?.mode();
    println!("granted has mode {mode:o}, its group class is the mask");
    fs::set_permissions(&granted, Permissions::from_mode(0o640))?;
    let written = as_user(1000, || File::options().append(true).open(&granted));
    println!("once the mask is r--, 1000 writes {}", outcome(written));

    default_acl(dir)?;

    removexattr(&denied, ACCESS)?;
    let written = as_user(1001, || File::options().append(true).open(&denied));
    println!("without its ACL, 1001 writes denied {}", outcome(written));
    let absent = getxattr(&denied, ACCESS, &mut [0; 100][..]);
    println!("and the ACL is {}", outcome(absent.map_err(Into::into)));
    Ok(())
}

/// What a folder's default ACL makes of new files, whatever the umask.
fn default_acl(dir: &Path) -> io::Result<()> {
    let folder = dir.join("folder");
    fs::create_dir(&folder)?;
    setxattr(&folder, DEFAULT, &acl_for(1000, 7, 0), XattrFlags::empty())?;
    rustix::process::umask(0o77.into());
    fs::write(folder.join("file"), "text")?;
    fs::create_dir(folder.join("inner"))?;
    fs::write(dir.join("no default"), "text")?;
    rustix::process::umask(0o22.into());
    for path in [
        folder.join("file"),
        folder.join("inner"),
        dir.join("no default"),
    ] {
        let name = path.file_name().unwrap_or_default().display();
        let mode = fs::metadata(&path)?.mode();
        let mut value = [0; 200];
        let inherited = match getxattr(&path, ACCESS, &mut value) {
            Ok(length) => format!("{:?}", &value[4..length]),
            Err(error) => error.to_string(),
        };
        let read = as_user(1000, || fs::metadata(&path).and_then(|_| File::open(&path)));
        println!(
            "{name} has mode {mode:o}, ACL {inherited}, 1000 reads {}",
            outcome(read)
        );
    }
    let kept = getxattr(folder.join("inner"), DEFAULT, &mut [0; 200][..]).is_ok();
    println!("inner hands it on: {kept}");
    Ok(())
}

type Change = fn(&Path) -> io::Result<()>;

/// Every way to change what a file holds.
const CHANGES: &[(&str, Change)] = &[
    ("write", |path| writable(path)?.write_all(b"new")),
    ("append", |path| {
        File::options().append(true).open(path)?.write_all(b"new")
    }),
    ("truncate", |path| writable(path)?.set_len(2)),
    ("open to truncate", |path| {
        File::options()
            .write(true)
            .truncate(true)
            .open(path)
            .map(drop)
    }),
    ("copy_file_range", |path| {
        let from = File::open(path.with_file_name("source"))?;
        copy_file_range(&from, Some(&mut 0), writable(path)?, Some(&mut 0), 4)?;
        Ok(())
    }),
    ("sendfile", |path| {
        let from = File::open(path.with_file_name("source"))?;
        rustix::fs::sendfile(writable(path)?, &from, None, 4)?;
        Ok(())
    }),
    ("fallocate", |path| allocate(path, FallocateFlags::empty())),
    ("punch a hole", |path| {
        allocate(path, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE)
    }),
];

fn writable(path: &Path) -> io::Result<File> {
    File::options().write(true).open(path)
}

fn allocate(path: &Path, flags: FallocateFlags) -> io::Result<()> {
    Ok(fallocate(writable(path)?, flags, 0, 8192)?)
}

/// Prints what is left of set-id bits and capabilities of a file after each change by an ordinary user,
/// and by root.
pub fn set_id(dir: &Path) -> io::Result<()> {
    /// Version 2, effective: CAP_NET_RAW.
    const NET_RAW: [u8; 20] = {
        let mut bytes = [0; 20];
        (bytes[3], bytes[0], bytes[5]) = (2, 1, 0x20);
        bytes
    };
    fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    fs::write(dir.join("source"), "evil")?;
    for (name, change) in CHANGES {
        for user in [1000, 0] {
            let path = dir.join(format!("{name} {user}"));
            fs::write(&path, "good")?;
            fs::set_permissions(&path, Permissions::from_mode(0o6777))?;
            setxattr(&path, CAPABILITY, &NET_RAW, XattrFlags::empty())?;
            match user {
                0 => change(&path)?,
                _ => as_user(user, || change(&path))?,
            }
            let mode = fs::metadata(&path)?.mode() & 0o7777;
            let capable = getxattr(&path, CAPABILITY, &mut [0; 64][..]).is_ok();
            println!("{name} by {user}: mode {mode:o}, capabilities {capable}");
        }
    }
    Ok(())
}

/// Prints who can read, list and set `trusted.*`, and what `user.virtiofs.*` is to a guest.
pub fn trusted(dir: &Path) -> io::Result<()> {
    const NAME: &str = "trusted.overlay.opaque";
    const KEPT_AS: &str = "user.virtiofs.trusted.overlay.opaque";
    let set = |path: &Path, name| setxattr(path, name, b"y", XattrFlags::empty());
    let file = dir.join("file");
    fs::write(&file, "")?;
    fs::set_permissions(&file, Permissions::from_mode(0o666))?;
    set(&file, NAME)?;
    for user in [0, 1000] {
        let tries = || {
            let mut list = [0; 1000];
            let length = listxattr(&file, &mut list)?;
            let list = String::from_utf8_lossy(&list[..length]).replace('\0', " ");
            let mut value = [0; 100];
            let value = getxattr(&file, NAME, &mut value).map(|length| length.to_string());
            println!("{user} lists {list:?}");
            println!("{user} reads {value:?}");
            println!(
                "{user} sets {}",
                outcome(set(&file, NAME).map_err(Into::into))
            );
            let forged = set(&file, KEPT_AS).map_err(Into::into);
            println!("{user} sets what it is kept as: {}", outcome(forged));
            let kept = getxattr(&file, KEPT_AS, &mut [0; 100][..]).map_err(Into::into);
            println!("{user} reads what it is kept as: {}", outcome(kept));
            let removed = removexattr(&file, KEPT_AS).map_err(Into::into);
            println!("{user} removes what it is kept as: {}", outcome(removed));
            Ok(())
        };
        match user {
            0 => tries()?,
            _ => as_user(user, tries)?,
        }
    }
    let link = dir.join("link");
    symlink("file", &link)?;
    let set = lsetxattr(&link, NAME, b"y", XattrFlags::empty()).map_err(Into::into);
    println!("on a symbolic link: {}", outcome(set));
    let read = lgetxattr(&link, NAME, &mut [0; 10][..]).map_err(Into::into);
    println!("read from one: {}", outcome(read));
    unnamed(dir)
}

/// The same on a file without a name, which gets one.
fn unnamed(dir: &Path) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, fsetxattr, linkat, open};
    let file = open(dir, OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR)?;
    fsetxattr(&file, "trusted.x", b"y", XattrFlags::empty())?;
    let by_fd = format!("/proc/self/fd/{}", file.as_raw_fd());
    let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
    linkat(
        rustix::fs::CWD,
        by_fd,
        rustix::fs::CWD,
        dir.join("named"),
        follow,
    )?;
    let read = getxattr(dir.join("named"), "trusted.x", &mut [0; 10][..]).map_err(Into::into);
    println!("on one without a name: {}", outcome(read));
    Ok(())
}
