"""The part of util-linux's libmount for Python that crun's suite uses: Debian has no package of it."""


class Mount:
    def __init__(self, vfs_options, fs_options):
        self.vfs_options = vfs_options
        self.fs_options = fs_options


class Table:
    """The mounts of a copy of /proc/self/mountinfo."""

    def __init__(self, path):
        self.mounts = {}
        with open(path) as file:
            for line in file:
                # ID PARENT DEVICE ROOT TARGET VFS-OPTIONS [TAG…] - TYPE SOURCE FS-OPTIONS
                before, _, after = line.partition(" - ")
                fields = before.split()
                if len(fields) >= 6:
                    self.mounts[fields[4]] = Mount(fields[5], after.split()[2])

    def find_target(self, target):
        return self.mounts[target]
