//! The device with a well-behaved guest, and with a hostile one.

mod driver;
mod jailed;
mod sockets;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtiofsd::fuse::Opcode;
use vm_memory::{Bytes, GuestAddress};

use super::{Error, Fs};
use crate::jail::test_child::{self, End};
use crate::virtio::testing::Bench;
use crate::virtio::{DeviceState, RestoreError, SaveError, VirtioDevice};
use driver::{Guest, MEMORY, REPLY, REQUEST, REQUESTS, c_string, options, unconfined, word};

const ROOT: u64 = 1;
const LOOKUP: u32 = Opcode::Lookup as u32;
const OPEN: u32 = Opcode::Open as u32;
const READ: u32 = Opcode::Read as u32;
const WRITE: u32 = Opcode::Write as u32;
const CREATE: u32 = Opcode::Create as u32;

fn tree() -> tempfile::TempDir {
    let tree = tempfile::tempdir().expect("a directory");
    fs::write(tree.path().join("hello"), "hello, guest").expect("a file");
    tree
}

/// The body of FUSE_READ.
fn read_in(handle: u64, offset: u64, size: u32) -> Vec<u8> {
    let mut body = handle.to_le_bytes().to_vec();
    body.extend(offset.to_le_bytes());
    body.extend(size.to_le_bytes());
    body.resize(40, 0);
    body
}

/// The body of FUSE_CREATE.
fn create_in(name: &str, mode: u32) -> Vec<u8> {
    let flags = libc::O_RDWR as u32;
    let mut body: Vec<u8> = [flags, mode | libc::S_IFREG, 0, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    body.extend(c_string(name));
    body
}

#[test]
fn the_tag_is_in_the_configuration_space() {
    let tree = tree();
    let device = Fs::new(options(tree.path())).expect("a device");
    assert_eq!(&device.config()[..5], b"hull\0");
    assert_eq!(&device.config()[36..], &1_u32.to_le_bytes());
    for tag in ["", "a\0b", &"x".repeat(37)] {
        let mut options = options(tree.path());
        options.tag = tag.into();
        assert!(matches!(Fs::new(options), Err(Error::Tag(_))), "{tag:?}");
    }
}

#[test]
fn a_file_of_the_share_can_be_read() {
    let tree = tree();
    let mut guest = Guest::with_root(tree.path());
    let node = guest.lookup(ROOT, "hello").expect("lookup");
    let handle = guest.open(node, libc::O_RDONLY).expect("open");
    let data = guest.request(READ, node, &read_in(handle, 7, 100));
    assert_eq!(data.as_deref(), Ok(&b"guest"[..]));
    assert_eq!(guest.lookup(ROOT, "absent"), Err(libc::ENOENT));
    guest.stop();
}

#[test]
fn a_new_file_belongs_to_the_process_that_makes_it() {
    if !crate::jail::test_child::is_root() {
        return;
    }
    let tree = tree();
    let mut guest = Guest::with_root(tree.path());
    fs::set_permissions(
        tree.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .expect("chmod");
    let reply = guest
        .request_as(1234, CREATE, ROOT, &create_in("mine", 0o4755))
        .expect("create");
    let (node, handle) = (word(&reply, 0), word(&reply, 128));
    let mut body = handle.to_le_bytes().to_vec();
    body.extend(0_u64.to_le_bytes());
    body.extend(4_u32.to_le_bytes());
    body.resize(40, 0);
    body.extend(b"data");
    guest.request(WRITE, node, &body).expect("write");
    let made = fs::metadata(tree.path().join("mine")).expect("the file");
    assert_eq!(
        (made.uid(), made.gid(), made.mode() & 0o7777),
        (1234, 1234, 0o4755)
    );
    assert_eq!(fs::read(tree.path().join("mine")).expect("data"), b"data");
    guest.stop();
}

#[test]
fn malformed_chains_come_back_empty() {
    let tree = tree();
    let mut guest = Guest::with_root(tree.path());
    let node = guest.lookup(ROOT, "hello").expect("lookup");
    let handle = guest.open(node, libc::O_RDONLY).expect("open");
    // A complete FUSE_READ lies in memory from here on.
    guest
        .request(READ, node, &read_in(handle, 0, 100))
        .expect("read");
    let request = (REQUEST, 80, false);
    let chains: &[&[(u64, u32, bool)]] = &[
        &[(REPLY, 4096, true)],
        &[(REQUEST, 39, false), (REPLY, 4096, true)],
        &[(REQUEST, 60, false), (REPLY, 4096, true)],
        &[request],
        &[request, (REPLY, 15, true)],
        &[request, (REPLY, 0, true)],
        &[(REPLY, 4096, true), request],
        &[request, (MEMORY - 8, 4096, true)],
        &[request, (u64::MAX - 8, 4096, true)],
        &[(MEMORY, 80, false), (REPLY, 4096, true)],
        &[request, (REPLY, 0x20_0000, true)],
        &[(REQUEST, 0x20_0000, false), (REPLY, 4096, true)],
        &[request, (REPLY, u32::MAX, true), (REPLY, u32::MAX, true)],
        &[(REQUEST, 80, false); 400],
    ];
    for chain in chains {
        assert_eq!(guest.chain(REQUESTS, chain), 0, "{chain:?}");
    }
    // A chain with a loop, and an indirect table in an indirect table.
    guest.descriptor(0x1_0000, 0, REQUEST, 80, 1, 0);
    guest.offer(REQUESTS);
    assert_eq!(guest.wait(REQUESTS), 0);
    guest.descriptor(0x1_0000, 0, 0x6_0000, 32, 4, 0);
    guest.descriptor(0x6_0000, 0, 0x6_0000, 32, 4, 0);
    guest.offer(REQUESTS);
    assert_eq!(guest.wait(REQUESTS), 0);
    assert!(
        guest.lookup(ROOT, "hello").is_ok(),
        "the device still serves"
    );
    guest.stop();
}

/// A second processor of the guest changes the length of the reply's buffer and the opcode, in the middle
/// of whatever the device makes of them.
#[test]
fn a_chain_that_changes_while_it_is_served_does_no_harm() {
    let tree = tree();
    let mut guest = Guest::with_root(tree.path());
    let node = guest.lookup(ROOT, "hello").expect("lookup");
    let handle = guest.open(node, libc::O_RDONLY).expect("open");
    let read = read_in(handle, 0, 100);
    guest.request(READ, node, &read).expect("read");
    let chain = [(REQUEST, 80, false), (REPLY, 4096, true)];
    let second_length = GuestAddress(0x1_0000 + 16 + 8);
    let opcode = GuestAddress(REQUEST + 4);
    let stop = Arc::new(AtomicBool::new(false));
    let processor = std::thread::spawn({
        let (memory, stop) = (Arc::clone(&guest.memory), Arc::clone(&stop));
        move || {
            let flip = |value: u32, at| memory.write_obj(value, at).expect("guest memory");
            while !stop.load(Ordering::Relaxed) {
                flip(8, second_length);
                flip(Opcode::Forget as u32, opcode);
                flip(READ, opcode);
                flip(4096, second_length);
            }
        }
    });
    for _ in 0..20_000 {
        guest.chain(REQUESTS, &chain);
    }
    stop.store(true, Ordering::Relaxed);
    processor.join().expect("the processor");
    assert!(guest.lookup(ROOT, "hello").is_ok(), "the device serves on");
    guest.stop();
}

#[test]
fn nonsense_in_a_request_is_refused_and_the_device_goes_on() {
    let tree = tree();
    let mut guest = Guest::with_root(tree.path());
    assert_eq!(guest.request(9999, ROOT, &[]), Err(libc::ENOSYS));
    assert_eq!(guest.request(OPEN, 77, &[0; 8]), Err(libc::EBADF));
    assert_eq!(
        guest.request(READ, ROOT, &read_in(55, 0, u32::MAX)),
        Err(libc::EBADF)
    );
    // A length in the header that is larger than the chain, and one that is smaller than a header.
    for length in [u32::MAX, 0x10_0000, 4096, 39, 0] {
        let mut bytes = vec![0; 60];
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes[4..8].copy_from_slice(&LOOKUP.to_le_bytes());
        guest
            .memory
            .write_slice(&bytes, GuestAddress(REQUEST))
            .expect("a request");
        guest.chain(REQUESTS, &[(REQUEST, 60, false), (REPLY, 4096, true)]);
    }
    // Forgetting the root, and more than was ever looked up.
    let node = guest.lookup(ROOT, "hello").expect("lookup");
    for forgotten in [node, ROOT, 0, u64::MAX] {
        guest.forget(forgotten, u64::MAX);
    }
    assert_eq!(guest.request(OPEN, node, &[0; 8]), Err(libc::EBADF));
    guest.stop();
}

#[test]
fn an_offset_beyond_any_file_is_refused() {
    let tree = tree();
    let mut guest = Guest::with_root(tree.path());
    let node = guest.lookup(ROOT, "hello").expect("lookup");
    let handle = guest.open(node, libc::O_RDWR).expect("open");
    for offset in [u64::MAX, 1 << 63, i64::MAX as u64] {
        let body = read_in(handle, offset, 8);
        assert_eq!(guest.request(READ, node, &body), Err(libc::EINVAL));
        // FUSE_WRITE's arguments begin as FUSE_READ's do; the data follow.
        let body = [body.as_slice(), &[7; 8]].concat();
        assert_eq!(guest.request(WRITE, node, &body), Err(libc::EINVAL));
    }
    guest.stop();
}

#[test]
fn a_name_is_not_a_path() {
    let tree = tree();
    fs::create_dir_all(tree.path().join("share/dir")).expect("a directory");
    fs::write(tree.path().join("share/dir/file"), "").expect("a file");
    let mut guest = Guest::with_root(&tree.path().join("share"));
    let directory = guest.lookup(ROOT, "dir").expect("lookup");
    for name in ["../hello", "..", ".", "", "dir/file", "/hello", "file/"] {
        assert_eq!(guest.lookup(directory, name), Err(libc::EINVAL), "{name:?}");
        for opcode in [Opcode::Unlink, Opcode::Rmdir] {
            let reply = guest.request(opcode as u32, directory, &c_string(name));
            assert_eq!(reply, Err(libc::EINVAL), "{opcode:?} {name:?}");
        }
        let reply = guest.request(CREATE, directory, &create_in(name, 0o644));
        assert_eq!(reply, Err(libc::EINVAL), "create {name:?}");
        for (old, new) in [("file", name), (name, "new")] {
            let mut body = directory.to_le_bytes().to_vec();
            body.extend(c_string(old));
            body.extend(c_string(new));
            let reply = guest.request(Opcode::Rename as u32, directory, &body);
            assert_eq!(reply, Err(libc::EINVAL), "rename {old:?} {new:?}");
        }
    }
    guest.stop();
    assert!(tree.path().join("hello").exists());
}

#[test]
fn a_fifo_of_the_host_does_not_hold_up_the_device() {
    let tree = tree();
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        tree.path().join("fifo"),
        kind,
        0o666.into(),
        0,
    )
    .expect("a FIFO");
    let mut guest = Guest::with_root(tree.path());
    let node = guest.lookup(ROOT, "fifo").expect("lookup");
    assert_eq!(guest.open(node, libc::O_RDONLY), Err(libc::EBADF));
    let reply = guest.request(CREATE, ROOT, &create_in("fifo", 0o644));
    assert_eq!(reply, Err(libc::EBADF));
    guest.stop();
}

#[test]
fn opens_without_end_meet_a_limit() {
    let tree = tree();
    let mut limited = options(tree.path());
    limited.fd_limit = 20;
    let mut guest = Guest::new(limited, unconfined);
    let node = guest.lookup(ROOT, "hello").expect("lookup");
    let errors: Vec<_> = (0..50)
        .filter_map(|_| guest.open(node, libc::O_RDONLY).err())
        .collect();
    // Of the 20, two are for files without a name, and two hold the root and the file.
    assert_eq!(errors, vec![libc::ENFILE; 50 - 16]);
    guest.stop();
}

/// The arguments of FUSE_TMPFILE.
fn tmpfile_in() -> Vec<u8> {
    let mut body = create_in("/", 0o644);
    body[..4].copy_from_slice(&((libc::O_RDWR | libc::O_TMPFILE) as u32).to_le_bytes());
    body
}

#[test]
fn unnamed_files_without_end_meet_a_limit() {
    let tree = tree();
    let mut guest = Guest::with_root(tree.path());
    let body = tmpfile_in();
    let replies: Vec<_> = (0..70)
        .map(|_| guest.request(Opcode::TmpFile as u32, ROOT, &body).err())
        .collect();
    // An eighth of the 1000 files of `options`, and each is a file and a handle.
    let expected: Vec<_> = [None; 63]
        .into_iter()
        .chain([Some(libc::ENFILE); 7])
        .collect();
    assert_eq!(replies, expected);
    guest.stop();
}

#[test]
fn what_an_alias_stands_for_is_forgotten_only_with_it() {
    let tree = tree();
    let mut guest = Guest::with_root(tree.path());
    let body = tmpfile_in();
    let made = guest.request(Opcode::TmpFile as u32, ROOT, &body);
    let node = word(&made.expect("an unnamed file"), 0);
    let link = [node.to_le_bytes().as_slice(), &c_string("named")].concat();
    guest
        .request(Opcode::Link as u32, ROOT, &link)
        .expect("link");
    // The library counts its node ids up, so a guest can guess them.
    for guessed in ROOT + 1..10 {
        guest.forget(guessed, u64::MAX);
    }
    assert_eq!(guest.lookup(ROOT, "named"), Ok(node));
    // The count of the link, of the lookup, and of the creation.
    guest.forget(node, 3);
    assert_ne!(guest.lookup(ROOT, "named"), Ok(node));
    guest.stop();
}

/// The body of FUSE_SETXATTR.
fn setxattr_in(name: &str, value: &[u8]) -> Vec<u8> {
    let mut body = (value.len() as u32).to_le_bytes().to_vec();
    body.resize(16, 0);
    body.extend(c_string(name));
    body.extend(value);
    body
}

/// The body of FUSE_GETXATTR, without the name that of FUSE_LISTXATTR.
fn getxattr_in(name: &str) -> Vec<u8> {
    let mut body = 200_u64.to_le_bytes().to_vec();
    body.extend(c_string(name));
    body
}

#[test]
fn a_guests_trusted_attributes_are_user_attributes_on_the_host() {
    const SET: u32 = Opcode::Setxattr as u32;
    const GET: u32 = Opcode::Getxattr as u32;
    let tree = tree();
    let mut guest = Guest::with_root(tree.path());
    let named = guest.lookup(ROOT, "hello").expect("lookup");
    let made = guest.request(Opcode::TmpFile as u32, ROOT, &tmpfile_in());
    let unnamed = word(&made.expect("an unnamed file"), 0);
    let (name, on_host) = ("trusted.overlay.x", "user.virtiofs.trusted.overlay.x");
    for node in [named, unnamed] {
        guest
            .request(SET, node, &setxattr_in(name, b"y"))
            .expect("set");
        assert_eq!(
            guest.request(GET, node, &getxattr_in(name)),
            Ok(b"y".to_vec())
        );
        let list = guest.request(Opcode::Listxattr as u32, node, &getxattr_in("")[..8]);
        assert_eq!(list, Ok(c_string(name)));
        let forged = guest.request(SET, node, &setxattr_in(on_host, b"y"));
        assert_eq!(forged, Err(libc::EPERM));
        let seen = guest.request(GET, node, &getxattr_in(on_host));
        assert_eq!(seen, Err(libc::ENODATA));
        let removed = guest.request(Opcode::Removexattr as u32, node, &c_string(on_host));
        assert_eq!(removed, Err(libc::EPERM));
    }
    let mut value = [0; 10];
    let hello = tree.path().join("hello");
    assert_eq!(rustix::fs::getxattr(&hello, on_host, &mut value), Ok(1));
    let removed = guest.request(Opcode::Removexattr as u32, named, &c_string(name));
    assert_eq!(removed, Ok(Vec::new()));
    let list = guest.request(Opcode::Listxattr as u32, named, &getxattr_in("")[..8]);
    assert_eq!(
        list,
        Ok(Vec::new()),
        "no list is not a list of one empty name"
    );
    guest.stop();
}

#[test]
fn a_folders_default_acl_is_what_counts_for_new_files() {
    // Version 2; owner rwx, user 1000 rwx, group -, mask rwx, others -.
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [(1_u16, 7_u16, u32::MAX), (2, 7, 1000), (4, 0, u32::MAX)]
        .into_iter()
        .chain([(0x10, 7, u32::MAX), (0x20, 0, u32::MAX)])
    {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    let tree = tree();
    fs::create_dir(tree.path().join("folder")).expect("a folder");
    let mut guest = Guest::with_root(tree.path());
    let folder = guest.lookup(ROOT, "folder").expect("lookup");
    let get = getxattr_in("system.posix_acl_access");
    let absent = guest.request(Opcode::Getxattr as u32, folder, &get);
    assert_eq!(absent, Err(libc::ENODATA));
    let default = setxattr_in("system.posix_acl_default", &acl);
    if guest.request(Opcode::Setxattr as u32, folder, &default) == Err(libc::EOPNOTSUPP) {
        eprintln!("skipped: no ACLs in {}", tree.path().display());
        return guest.stop();
    }
    for (parent, name, mode) in [(folder, "by the ACL", 0o660), (ROOT, "by the umask", 0o600)] {
        let mut create = create_in(name, 0o666);
        create[8..12].copy_from_slice(&0o77_u32.to_le_bytes());
        let made = guest.request(CREATE, parent, &create).expect("create");
        let attr = guest.request(Opcode::Getattr as u32, word(&made, 0), &[0; 16]);
        let at = 16 + 60;
        let found =
            u32::from_le_bytes(attr.expect("attributes")[at..at + 4].try_into().expect("4"));
        assert_eq!(found & 0o777, mode, "{name}");
    }
    guest.stop();
}

/// The generation is the second word of an entry.
#[test]
fn a_file_handle_of_one_guest_is_void_in_the_next() {
    let tree = tree();
    let generations: Vec<_> = (0..2)
        .map(|number| {
            let mut guest = Guest::with_root(tree.path());
            let mut ask = |opcode: Opcode, body: &[u8]| {
                let entry = guest.request(opcode as u32, ROOT, body).expect("an entry");
                word(&entry, 8)
            };
            let mkdir = [
                [0xed, 1, 0, 0, 0, 0, 0, 0].as_slice(),
                &c_string(&format!("d{number}")),
            ];
            let of_each_kind = [
                ask(Opcode::Lookup, &c_string("hello")),
                ask(Opcode::Create, &create_in(&format!("new{number}"), 0o644)),
                ask(Opcode::Mkdir, &mkdir.concat()),
                ask(Opcode::TmpFile, &tmpfile_in()),
            ];
            guest.stop();
            assert_eq!(of_each_kind, [of_each_kind[0]; 4]);
            of_each_kind[0]
        })
        .collect();
    assert_ne!(generations[0], generations[1]);
}

#[test]
fn a_ring_out_of_order_waits_for_a_reset() {
    let tree = tree();
    let mut guest = Guest::with_root(tree.path());
    let node = guest.lookup(ROOT, "hello").expect("lookup");
    guest.open(node, libc::O_RDONLY).expect("open");
    guest.set_available(REQUESTS, 40000);
    guest.reset();
    guest.activate();
    // The new driver's FUSE session is a new one: nothing of the old one is left in it.
    assert_eq!(guest.request(OPEN, node, &[0; 8]), Err(libc::EBADF));
    guest.stop();
}

#[test]
fn another_devices_state_is_refused() {
    let tree = tree();
    let mut device = Fs::new(options(tree.path())).expect("a device");
    let refused = device.restore(DeviceState::Rng);
    assert!(matches!(refused, Err(RestoreError::Differs { .. })));
    assert!(device.restore(DeviceState::Fs).is_ok());
}

/// In a child: opening the tree changes the umask of the thread and all that share it.
#[test]
fn a_saved_share_goes_on_until_it_is_mounted() {
    let tree = tree();
    let end = test_child::run(|| {
        let open = || {
            let mut device = Fs::new(options(tree.path())).expect("a device");
            let descriptors = fs::File::open("/proc/thread-self/fd").expect("/proc");
            device.open(descriptors).expect("the tree");
            device
        };
        let ask = |bench: &mut Bench<Fs>, opcode: u32, body: &[u8]| {
            let mut bytes = (40 + body.len() as u32).to_le_bytes().to_vec();
            bytes.extend(opcode.to_le_bytes());
            bytes.extend(7_u64.to_le_bytes());
            bytes.extend(ROOT.to_le_bytes());
            bytes.resize(40, 0);
            bytes.extend(body);
            let request = bench.put(0x5000, &bytes);
            let chain = [(request, bytes.len() as u32, 0), (0x6000, 0x1000, 2)];
            bench.put(0x6004, &[0; 4]);
            bench.request(1, &chain);
            let error: [u8; 4] = bench.get(0x6004, 4).try_into().expect("4");
            i32::from_le_bytes(error)
        };
        let mut bench = Bench::new(open());
        bench.start();
        assert_eq!(ask(&mut bench, 9999, &[]), -libc::ENOSYS);
        let state = bench.save();

        let mut bench = bench.restored(open(), &state).expect("the same");
        let mut init = [7_u32, 38, 0x1000, 0x7fff_ffff, 0xffff_ffff]
            .map(u32::to_le_bytes)
            .concat();
        init.resize(64, 0);
        assert_eq!(ask(&mut bench, Opcode::Init as u32, &init), 0);
        assert_eq!(ask(&mut bench, LOOKUP, &c_string("hello")), 0);
        assert!(matches!(bench.try_save(), Err(SaveError::ShareMounted)));
        assert_eq!(ask(&mut bench, LOOKUP, &c_string("hello")), 0, "it goes on");
        assert_eq!(ask(&mut bench, Opcode::Destroy as u32, &[]), 0);
        assert!(bench.try_save().is_ok());
    });
    assert_eq!(end, End::Returned);
}
