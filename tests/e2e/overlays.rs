//! overlayfs mounted inside a container, with its layers on the container's root and on a volume, as
//! engines in containers mount it.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use hull_tests::runtime::is_hull;
use hull_tests::{Bundle, Container};
use serde_json::json;

/// What mounting takes, and what overlayfs does in the name of whoever mounts.
const CAPABILITIES: [&str; 6] = [
    "CAP_SYS_ADMIN",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_MKNOD",
];

/// Makes layers in the folder, mounts them, and changes what is there in every way: `change OPTIONS`.
/// `show OPTIONS` mounts them and lists what is there.
const FUNCTIONS: &str = r#"
    set -e
    over() {
        mount -t overlay overlay -o "lowerdir=lower,upperdir=upper,workdir=work$1" merged
    }
    change() {
        mkdir lower upper work merged lower/dir lower/again
        for name in file gone dir/inner again/old; do echo "lower $name" >lower/$name; done
        ln lower/file lower/hard
        ln -s file lower/link
        over "$1"
        cd merged
        echo new >made
        echo more >>file
        rm gone
        mv dir moved
        mv link relinked
        rm -r again
        mkdir again
        echo young >again/young
        chmod 640 hard
        cd ..
        umount merged
    }
    show() {
        over "$1"
        (cd merged; find . | sort; cat made file moved/inner again/*; readlink relinked)
        ! ls merged/gone 2>/dev/null
        umount merged
    }
"#;

const SHOWN: &str = ".\n./again\n./again/young\n./file\n./hard\n./made\n./moved\n./moved/inner\n\
                     ./relinked\nnew\nlower file\nmore\nlower dir/inner\nyoung\nfile";

/// What the layers became on the host: a whiteout is a device 0:0, and an opaque folder has an attribute.
fn look_at(upper: &Path, attribute: &str) {
    let whiteout = fs::symlink_metadata(upper.join("gone")).unwrap();
    assert!(whiteout.file_type().is_char_device(), "{whiteout:?}");
    assert_eq!(whiteout.rdev(), 0);
    let mut value = [0; 8];
    let length = rustix::fs::getxattr(upper.join("again"), attribute, &mut value);
    assert_eq!(length, Ok(1), "{attribute}");
    assert_eq!(value[0], b'y');
}

#[test]
fn an_overlay_on_the_root_and_on_a_volume() {
    const OPTIONS: &str = ",redirect_dir=on";
    let script = format!(
        "{FUNCTIONS} for place in /var /mnt; do
             cd $place; change {OPTIONS}; show {OPTIONS}; show {OPTIONS}
         done"
    );
    let bundle = Bundle::new().shell(&script).capabilities(&CAPABILITIES);
    let shared = bundle.folder("shared");
    let container = Container::new(bundle.bind(&shared, "/mnt", &[]));

    let done = container.run().ok();

    assert_eq!(done.out(), [SHOWN; 4].join("\n"));
    let attribute = if is_hull() {
        "user.virtiofs.trusted.overlay.opaque"
    } else {
        "trusted.overlay.opaque"
    };
    for layers in [container.bundle.rootfs().join("var"), shared.clone()] {
        look_at(&layers.join("upper"), attribute);
    }
    // another container finds it as it was left
    let script = format!("{FUNCTIONS} cd /mnt; show {OPTIONS}");
    let bundle = Bundle::new().shell(&script).capabilities(&CAPABILITIES);
    let again = Container::new(bundle.bind(&shared, "/mnt", &[]));

    let done = again.run().ok();

    assert_eq!(done.out(), SHOWN);
}

#[test]
fn an_overlay_in_a_user_namespace() {
    let script = format!("{FUNCTIONS} cd /mnt; change ,userxattr; show ,userxattr");
    let bundle = Bundle::new()
        .shell(&script)
        .capabilities(&CAPABILITIES)
        .in_user_namespace(json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]));
    let shared = bundle.folder("shared");
    let container = Container::new(bundle.bind(&shared, "/mnt", &[]));

    let done = container.run().ok();

    assert_eq!(done.out(), SHOWN);
    look_at(&shared.join("upper"), "user.overlay.opaque");
}
