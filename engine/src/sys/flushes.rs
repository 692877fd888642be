//! Whether a flush reaches the disk: what file system a path is on, how it is mounted, and what is known of both.
//!
//! Journaled ext4, XFS and btrfs send a flush to the device with every `fdatasync`. ext4 without a journal sends none
//! for blocks that are only written over before Linux 6.12 (`ext4_fsync_nojournal` returns early); with barriers
//! switched off nothing sends any; and what lives in memory has no disk. Measured in guests with both kernels; of
//! file systems that are not listed here nothing is known, and they are taken at their word.

use std::fs;
use std::io;
use std::path::Path;

/// What a completed flush is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flushes {
    /// The data survives power loss.
    Reach,
    /// The same, with something an operator should know.
    ReachBut(String),
    /// It does not survive power loss, and why.
    DoNotReach(String),
}

/// The mount that a path is on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Mount {
    point: String,
    file_system: String,
    /// Of the mount and of the file system, by commas.
    options: String,
    /// Whether an ext4 has a journal, where that can be told.
    journal: Option<bool>,
}

/// What a flush of files at `path`, which exists, is worth: looks at its mount.
///
/// # Errors
/// What the kernel said.
pub fn flushes_of(path: &Path) -> io::Result<Flushes> {
    let device = nix::sys::stat::stat(path)?.st_dev;
    let numbers = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let real = fs::canonicalize(path)?;
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let Some(mut mount) = find(&table, &numbers, &real.to_string_lossy()) else {
        return Ok(Flushes::ReachBut("its mount is not known; flushes are taken at their word".to_owned()));
    };
    if mount.file_system == "ext4" {
        mount.journal = has_journal(&numbers);
    }
    let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    Ok(judge(&mount, &release))
}

/// The mount of that device whose point is nearest above `path`.
fn find(table: &str, device: &str, path: &str) -> Option<Mount> {
    let mounts = table.lines().filter_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let front: Vec<&str> = front.split(' ').collect();
        let mut back = back.split(' ');
        let (file_system, _source) = (back.next()?, back.next()?);
        let options = format!("{},{}", front.get(5)?, back.next().unwrap_or_default());
        let of_device = *front.get(2)? == device;
        let (point, file_system) = ((*front.get(4)?).to_owned(), file_system.to_owned());
        of_device.then_some(Mount { point, file_system, options, journal: None })
    });
    let above = |point: &str| point == "/" || path == point || path.starts_with(&format!("{point}/"));
    // Over-mounted, the last one is seen.
    let mut nearest: Option<Mount> = None;
    for mount in mounts.filter(|mount| above(&mount.point)) {
        if nearest.as_ref().is_none_or(|known| mount.point.len() >= known.point.len()) {
            nearest = Some(mount);
        }
    }
    nearest
}

fn has_journal(device: &str) -> Option<bool> {
    let link = fs::read_link(format!("/sys/dev/block/{device}")).ok()?;
    let name = link.file_name()?.to_string_lossy().into_owned();
    let task = fs::read_to_string(format!("/sys/fs/ext4/{name}/journal_task")).ok();
    task.map(|task| task.trim() != "<none>")
        .or_else(|| Path::new(&format!("/proc/fs/jbd2/{name}-8")).exists().then_some(true))
}

fn judge(mount: &Mount, kernel_release: &str) -> Flushes {
    let Mount { point, file_system, options, journal } = mount;
    let is_set = |name: &str| options.split(',').any(|option| option == name);
    match file_system.as_str() {
        "tmpfs" | "ramfs" | "devtmpfs" => {
            Flushes::DoNotReach(format!("{point} is a {file_system}: it lives in memory"))
        }
        _ if is_set("nobarrier") || is_set("barrier=0") => {
            Flushes::DoNotReach(format!("{point} is mounted with barriers off: no flush reaches the disk"))
        }
        "ext4" if *journal == Some(false) => match version(kernel_release) >= (6, 12) {
            true => Flushes::ReachBut(format!(
                "{point} is an ext4 without a journal: after power loss it may need fsck before it can be read"
            )),
            false => Flushes::DoNotReach(format!(
                "{point} is an ext4 without a journal, which Linux {kernel_release} does not flush (6.12 does)"
            )),
        },
        "ext4" | "ext3" | "xfs" | "btrfs" | "f2fs" => Flushes::Reach,
        other => Flushes::ReachBut(format!(
            "{point} is a {other}, of which nothing is known; its flushes are taken at their word"
        )),
    }
}

/// 6.18.44-something is (6, 18).
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|word| word.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw,nobarrier
23 22 0:21 / /dev/shm rw - tmpfs tmpfs rw,size=1k
24 22 8:1 / /data rw - xfs /dev/sda1 rw,attr2
25 22 8:1 /sub /data/inner rw - xfs /dev/sda1 rw
26 22 8:2 / /old rw - ext4 /dev/sda2 rw,data=ordered";

    fn of(device: &str, path: &str, journal: Option<bool>, release: &str) -> Flushes {
        judge(&Mount { journal, ..find(TABLE, device, path).unwrap() }, release)
    }

    #[test]
    fn what_is_known_of_mounts_is_what_is_promised() {
        let refused = |flushes: Flushes| match flushes {
            Flushes::DoNotReach(words) => words,
            other => panic!("{other:?}"),
        };
        assert!(refused(of("254:0", "/x", Some(true), "6.18.0")).contains("barriers off"));
        assert!(refused(of("0:21", "/dev/shm/x", None, "6.18.0")).contains("/dev/shm is a tmpfs"));
        assert_eq!(of("8:1", "/data/x", None, "5.19.0"), Flushes::Reach);
        assert_eq!(find(TABLE, "8:1", "/data/inner/x").unwrap().point, "/data/inner");
        assert_eq!(find(TABLE, "8:1", "/datax").map(|mount| mount.point), None);
        assert_eq!(of("8:2", "/old/x", Some(true), "6.1.0-56-cloud-amd64"), Flushes::Reach);
        assert!(refused(of("8:2", "/old/x", Some(false), "6.1.0-56-cloud-amd64")).contains("6.1.0-56"));
        assert!(matches!(of("8:2", "/old/x", Some(false), "6.12.117+deb12"), Flushes::ReachBut(_)));
        let unknown = Mount { file_system: "fuse.odd".to_owned(), ..Mount::default() };
        assert!(matches!(judge(&unknown, "6.18"), Flushes::ReachBut(words) if words.contains("fuse.odd")));
    }

    #[test]
    fn the_mount_of_a_path_of_this_machine_is_found() {
        assert!(flushes_of(Path::new(".")).is_ok());
        if Path::new("/dev/shm").is_dir() {
            assert!(matches!(flushes_of(Path::new("/dev/shm")), Ok(Flushes::DoNotReach(_))));
        }
        assert!(flushes_of(Path::new("/no/such/path")).is_err());
    }
}
