//! Asks Linux how full this process is: `/proc/self` and the control group's files.
//!
//! Easy to get wrong: pages of files are given back when somebody needs them, so they never count
//! as taken; and `/proc/meminfo` may be hidden from a service, so the machine's size comes from
//! `sysinfo`.

use std::fs;
use std::path::{Path, PathBuf};

use super::Fill;

/// Who knows how full the process is.
pub trait Probe: Send + Sync {
    /// The tightest limit of memory, in bytes; `None` if nobody can tell.
    fn memory(&self) -> Option<Fill>;
    /// Open descriptors and how many there may be.
    fn descriptors(&self) -> Option<Fill>;
}

/// Asks the kernel about this process.
pub struct Machine {
    memory_bytes_max: u64,
    groups: Vec<Group>,
}

/// A control group whose limit is ours.
struct Group {
    folder: PathBuf,
    version: Version,
}

#[derive(Clone, Copy)]
enum Version {
    One,
    Two,
}

impl Machine {
    /// With a limit of the operator's beside those of the system; 0 for none.
    pub fn new(memory_bytes_max: u64) -> Self {
        Self { memory_bytes_max, groups: own_groups(&read("/proc/self/cgroup")) }
    }
}

impl Probe for Machine {
    fn memory(&self) -> Option<Fill> {
        let status = read("/proc/self/status");
        let kib = |name: &str| field(&status, name).map(|kib| kib.saturating_mul(1024));
        let own = kib("RssAnon:")?.saturating_add(kib("RssShmem:").unwrap_or(0));
        let limits = read("/proc/self/limits");
        let asked = (self.memory_bytes_max > 0).then_some(self.memory_bytes_max);
        let resource = |name: &str, used: &str| Some((soft_limit(&limits, name)?, kib(used)?));
        let fill = |of: &'static str| move |(limit, used): (u64, u64)| Fill { used, limit, of };
        let machine = fill("the machine")((machine_bytes(), own));
        let all = (asked.map(|limit| (limit, own)).map(fill("overload.memory_max")).into_iter())
            .chain(resource("Max address space", "VmSize:").map(fill("the limit of address space")))
            .chain(resource("Max data size", "VmData:").map(fill("the limit of data")))
            .chain(self.groups.iter().filter_map(Group::fill));
        // A control group may be larger than the machine.
        Some(
            all.filter(|fill| fill.limit > 0)
                .fold(machine, |tightest, fill| if fill.is_tighter_than(tightest) { fill } else { tightest }),
        )
    }

    fn descriptors(&self) -> Option<Fill> {
        let limit = soft_limit(&read("/proc/self/limits"), "Max open files")?;
        // Since Linux 6.2 the folder's size is their number; before, they are counted.
        let counted = || fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as u64);
        let used = fs::metadata("/proc/self/fd").ok().map(|found| found.len()).filter(|count| *count > 0);
        // No descriptor left to count with: all are taken.
        Some(Fill { used: used.or_else(counted).unwrap_or(limit), limit, of: "the limit of open files" })
    }
}

impl Group {
    /// What cannot be given back, against the limit; `None` without one.
    fn fill(&self) -> Option<Fill> {
        let (limit, usage, file, shared) = match self.version {
            Version::One => ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache", "total_shmem"),
            Version::Two => ("memory.max", "memory.current", "file", "shmem"),
        };
        let number = |name: &str| read(self.folder.join(name)).trim().parse::<u64>().ok();
        // `max` in version 2, a number beyond any machine in version 1.
        let limit = number(limit).filter(|limit| *limit < 1 << 60)?;
        let statistics = read(self.folder.join("memory.stat"));
        let of = |name: &str| field(&statistics, name).unwrap_or(0);
        let reclaimable = of(file).saturating_sub(of(shared)).saturating_add(of("slab_reclaimable"));
        Some(Fill { used: number(usage)?.saturating_sub(reclaimable), limit, of: "the control group" })
    }
}

/// The groups of this process and those above them, as far as they can be seen.
fn own_groups(membership: &str) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (version, roots): (_, &[&str]) = match controllers {
            "" => (Version::Two, &["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]),
            names if names.split(',').any(|name| name == "memory") => (Version::One, &["/sys/fs/cgroup/memory"]),
            _ => continue,
        };
        for root in roots {
            let path = Path::new(path.trim_start_matches('/'));
            // In a container the path may be the host's; then only the root is there.
            let folders = path.ancestors().map(|above| Path::new(root).join(above));
            groups.extend(folders.map(|folder| Group { folder, version }));
        }
    }
    groups
}

fn machine_bytes() -> u64 {
    let found = rustix::system::sysinfo();
    found.totalram.saturating_mul(u64::from(found.mem_unit.max(1)))
}

/// A file's text; empty if it is not there.
fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The number after `name` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
    let rest = lines.find(|rest| rest.starts_with([' ', '\t']))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// The soft limit of `name` in `/proc/self/limits`; `None` if there is none.
fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    limits.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_some_memory_and_some_descriptors() {
        let machine = Machine::new(0);
        let memory = machine.memory().unwrap();
        assert!(memory.used > 100_000 && memory.used < memory.limit, "{memory:?}");
        let before = machine.descriptors().unwrap();
        let _more: Vec<_> = (0..20).map(|_| fs::File::open("/proc/self/status").unwrap()).collect();
        let after = machine.descriptors().unwrap();
        assert!(before.used >= 3 && after.used >= before.used + 10, "{before:?} {after:?}");
    }

    #[test]
    fn the_operators_limit_counts_if_it_is_the_tightest() {
        let memory = Machine::new(1024 * 1024 * 1024 * 1024 * 1024).memory().unwrap();
        assert_ne!(memory.of, "overload.memory_max");
        let memory = Machine::new(1).memory().unwrap();
        assert_eq!((memory.of, memory.limit), ("overload.memory_max", 1));
    }

    #[test]
    fn limits_and_fields_are_read_as_linux_writes_them() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max data size             unlimited            unlimited            bytes     \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(soft_limit(limits, "Max open files"), Some(1024));
        assert_eq!(soft_limit(limits, "Max data size"), None);
        let statistics = "anon 5\nfile 7\nfile_mapped 9\nVmRSS:\t    1234 kB\n";
        assert_eq!(field(statistics, "file"), Some(7));
        assert_eq!(field(statistics, "VmRSS:"), Some(1234));
        assert_eq!(field(statistics, "shmem"), None);
    }

    #[test]
    fn file_pages_do_not_count_and_a_group_without_a_limit_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("memory.max", "max\n");
        write("memory.current", "1000\n");
        write("memory.stat", "anon 300\nfile 600\nshmem 50\nslab_reclaimable 20\n");
        let group = Group { folder: folder.path().to_owned(), version: Version::Two };
        assert_eq!(group.fill(), None);
        write("memory.max", "2000\n");
        assert_eq!(group.fill().map(|fill| (fill.used, fill.limit)), Some((430, 2000)));
        write("memory.limit_in_bytes", "3000\n");
        write("memory.usage_in_bytes", "1000\n");
        write("memory.stat", "cache 1\ntotal_cache 600\ntotal_shmem 0\n");
        let group = Group { folder: folder.path().to_owned(), version: Version::One };
        assert_eq!(group.fill().map(|fill| (fill.used, fill.limit)), Some((400, 3000)));
        write("memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(group.fill(), None);
    }

    #[test]
    fn the_groups_above_count_too() {
        let groups = own_groups("9:name=systemd:/x\n4:cpu,memory:/a/b\n0::/\n");
        let folders: Vec<_> = groups.iter().map(|group| group.folder.display().to_string()).collect();
        for expected in ["/sys/fs/cgroup/memory/a/b", "/sys/fs/cgroup/memory/a", "/sys/fs/cgroup/memory/"] {
            assert!(folders.iter().any(|folder| folder == expected), "{folders:?}");
        }
    }
}
