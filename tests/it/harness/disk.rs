//! A small disk that can lose power: an ext4 image on a loop device with a journal of its own. The
//! cut is the file system's own shutdown without a journal flush: what was not synced is gone.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use postern::ext::Timestamp;

/// `EXT4_IOC_SHUTDOWN` (`_IOR('X', 125, __u32)`) with `EXT4_GOING_FLAGS_NOLOGFLUSH`; by Python,
/// because this crate has no unsafe code.
const CUT: &str = "import fcntl, os, struct, sys, time
disk = os.open(sys.argv[1], os.O_RDONLY)
print(time.time_ns() // 1000000, flush=True)
fcntl.ioctl(disk, 0x8004587D, struct.pack('I', 2))";
/// Tries to unmount while the dead daemon's files are being closed.
const UNMOUNT_TRIES: usize = 100;
/// Looks whether the loop device is gone.
const RELEASE_TRIES: usize = 10;

/// A mounted image; unmounted when dropped.
pub struct Disk {
    image: PathBuf,
    copies: u32,
    pub mount: PathBuf,
}

impl Disk {
    /// Makes and mounts an image of `mib` MiB below `folder`, or says why this machine cannot.
    pub fn make(folder: &Path, mib: u64) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("mounting an image needs root".to_owned());
        }
        let disk = Self { image: folder.join("disk.img"), copies: 0, mount: folder.join("disk") };
        fs::create_dir(&disk.mount).map_err(|error| error.to_string())?;
        let image = fs::File::create(&disk.image).map_err(|error| error.to_string())?;
        image.set_len(mib * 1024 * 1024).map_err(|error| error.to_string())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&disk.image))?;
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "loop"]).args([&self.image, &self.mount]))
    }

    fn unmount(&self) -> Result<(), String> {
        let mut last = Ok(());
        for _ in 0..UNMOUNT_TRIES {
            last = run(Command::new("umount").arg(&self.mount));
            if last.is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        last
    }

    /// From now on nothing reaches the disk any more, and every write and sync fails. The moment just
    /// before it.
    ///
    /// Unlike the real thing this leaves the machine running, and the shutdown is not atomic: the kernel
    /// lets a sync that had begun before it, and had its journal thrown away meanwhile, return success.
    /// A 250 said after this moment therefore proves nothing; with the power really gone it would never
    /// have left the machine.
    pub fn cut_power(&self) -> Result<Timestamp, String> {
        let output = Command::new("python3").args(["-c", CUT]).arg(&self.mount).output();
        let output = output.map_err(|error| format!("python3: {error}"))?;
        if !output.status.success() {
            return Err(format!("python3: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        let moment = String::from_utf8_lossy(&output.stdout).trim().parse().map_err(|_| "python3: no time")?;
        Ok(Timestamp(moment))
    }

    /// Unmounts what the cut left and mounts it again, replaying its journal.
    pub fn restore_power(&mut self) {
        self.unmount().unwrap();
        // A mount namespace made meanwhile (the peers of other tests live in some) may hold the dead
        // file system a while longer, and mounting would show it again: its image is copied then.
        if !self.is_released() {
            let copy = self.image.with_extension(format!("copy{}", self.copies));
            self.copies += 1;
            run(Command::new("cp").arg("--sparse=always").args([&self.image, &copy])).unwrap();
            fs::remove_file(&self.image).unwrap();
            self.image = copy;
        }
        self.mount().unwrap();
    }

    /// Whether no loop device has the image any more.
    fn is_released(&self) -> bool {
        (0..RELEASE_TRIES).any(|_| {
            let output = Command::new("losetup").arg("-j").arg(&self.image).output().unwrap();
            let released = output.stdout.is_empty();
            if !released {
                thread::sleep(Duration::from_millis(50));
            }
            released
        })
    }

    /// Everything written so far is on the disk.
    pub fn sync(&self) {
        run(Command::new("sync").arg("-f").arg(&self.mount)).unwrap();
    }

    pub fn free_bytes(&self) -> u64 {
        let free = rustix::fs::statvfs(&self.mount).unwrap();
        free.f_bavail * free.f_frsize
    }

    /// A file that takes all but `left` bytes.
    pub fn fill_but(&self, left: u64) -> PathBuf {
        let ballast = self.mount.join("ballast");
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&ballast).unwrap();
        let bytes = self.free_bytes().saturating_sub(left);
        let _ =
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), file.metadata().unwrap().len(), bytes);
        while self.free_bytes() > left && file.write_all(&[0; 4096]).is_ok() {}
        assert!(self.free_bytes() <= left, "{} bytes are still free", self.free_bytes());
        ballast
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.unmount();
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
