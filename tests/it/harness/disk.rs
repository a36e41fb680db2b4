//! A small disk that can be filled, and one that can lose power: ext4 with a journal of its own on an
//! image. The one that loses power has a volatile write cache in front of the image, which forwards
//! what it holds only when it is told to flush.
//!
//! The cache is nbdkit's, reached through nbdfuse and a loop device. Cutting the power kills it: what
//! was not flushed is gone, and from then on every write and every sync fails. So an answer that was
//! given after a sync returned is an answer given while the power was on, and all of them can be judged.
//!
//! In front of the cache every write can be refused for a while. The kernel forgets what it could not write
//! and says so once, to one sync; what it shows of the file is what should have been there.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long the cache may take to begin serving.
const CACHE_PATIENCE: Duration = Duration::from_secs(20);
/// While a file of this name is there, writes are refused.
const REFUSES: &str = "disk.refuses";
/// Tries to unmount while the dead daemon's files are being closed.
const UNMOUNT_TRIES: usize = 100;

/// A mounted image; unmounted when dropped.
pub struct Disk {
    folder: PathBuf,
    image: PathBuf,
    pub mount: PathBuf,
    has_cache: bool,
    cache: Option<Cache>,
    cuts: u32,
}

/// The volatile write cache while the power is on, and what leads to it.
struct Cache {
    /// Holds what was written since the last flush; dies with the power.
    nbdkit: Child,
    /// Shows it as a file.
    nbdfuse: Option<Child>,
    /// That file.
    file: PathBuf,
    /// The block device over it.
    device: Option<String>,
}

impl Disk {
    /// Makes and mounts an image of `mib` MiB below `folder`, or says why this machine cannot.
    pub fn make(folder: &Path, mib: u64) -> Result<Self, String> {
        Self::make_with(folder, mib, false)
    }

    /// The same behind a volatile write cache, so that [`Disk::cut_power`] works.
    pub fn make_volatile(folder: &Path, mib: u64) -> Result<Self, String> {
        for tool in ["nbdkit", "nbdfuse", "fusermount3"] {
            run(Command::new(tool).arg("--version"))?;
        }
        if !Path::new("/dev/fuse").exists() {
            return Err("there is no /dev/fuse".to_owned());
        }
        Self::make_with(folder, mib, true)
    }

    fn make_with(folder: &Path, mib: u64, has_cache: bool) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("mounting an image needs root".to_owned());
        }
        let (image, mount) = (folder.join("disk.img"), folder.join("disk"));
        let mut disk = Self { folder: folder.to_owned(), image, mount, has_cache, cache: None, cuts: 0 };
        fs::create_dir(&disk.mount).map_err(|error| error.to_string())?;
        let image = fs::File::create(&disk.image).map_err(|error| error.to_string())?;
        image.set_len(mib * 1024 * 1024).map_err(|error| error.to_string())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&disk.image))?;
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&mut self) -> Result<(), String> {
        if !self.has_cache {
            return run(Command::new("mount").args(["-o", "loop"]).args([&self.image, &self.mount]));
        }
        let cache = Cache::start(&self.folder, &self.image, self.cuts)?;
        let device = cache.device.as_deref().unwrap_or_default();
        let mounted = run(Command::new("mount").arg(device).arg(&self.mount));
        self.cache = Some(cache);
        mounted
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

    /// From now on nothing reaches the image any more, what was not flushed is gone, and every write
    /// and every sync fails.
    pub fn cut_power(&mut self) {
        let cache = self.cache.as_mut().expect("the disk has a volatile cache, and power");
        cache.nbdkit.kill().unwrap();
        cache.nbdkit.wait().unwrap();
    }

    /// From now on every write to the disk fails with EIO, or none does any more.
    pub fn refuse_writes(&self, refuses: bool) {
        let trigger = self.folder.join(REFUSES);
        match refuses {
            true => fs::write(trigger, "").unwrap(),
            false => fs::remove_file(trigger).unwrap(),
        }
    }

    /// Mounts what is left on the image, its journal replayed and the file system checked. The daemon
    /// must not run any more.
    pub fn restore_power(&mut self) {
        // Lazily: a mount namespace made meanwhile (the peers of other tests live in some) may hold the
        // dead file system a while longer. The image is mounted anew by another way.
        run(Command::new("umount").arg("-l").arg(&self.mount)).unwrap();
        drop(self.cache.take());
        self.cuts += 1;
        let checked = Command::new("e2fsck").arg("-p").arg(&self.image).output().unwrap();
        let text = String::from_utf8_lossy(&checked.stdout);
        assert!(matches!(checked.status.code(), Some(0 | 1)), "e2fsck says {}: {text}", checked.status);
        self.mount().unwrap();
    }

    /// Everything written so far is on the disk.
    pub fn sync(&self) {
        run(Command::new("sync").arg("-f").arg(&self.mount)).unwrap();
    }

    pub fn free_bytes(&self) -> u64 {
        let free = rustix::fs::statvfs(&self.mount).unwrap();
        free.f_bavail * free.f_frsize
    }

    /// A folder of empty files, after which there is no inode left.
    pub fn use_up_inodes(&self) -> PathBuf {
        let litter = self.mount.join("litter");
        fs::create_dir(&litter).unwrap();
        let mut number = 0;
        while fs::File::create(litter.join(number.to_string())).is_ok() {
            number += 1;
        }
        assert_eq!(rustix::fs::statvfs(&self.mount).unwrap().f_favail, 0, "inodes are left after {number} files");
        litter
    }

    /// A file that takes all but `left` bytes.
    pub fn fill_but(&self, left: u64) -> PathBuf {
        let ballast = self.mount.join("ballast");
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&ballast).unwrap();
        let bytes = self.free_bytes().saturating_sub(left);
        let _ =
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), file.metadata().unwrap().len(), bytes);
        // The daemon gives space back meanwhile: what it freed is taken too.
        for _ in 0..1_000 {
            while self.free_bytes() > left && file.write_all(&[0; 4096]).is_ok() {}
            if self.free_bytes() <= left {
                return ballast;
            }
        }
        panic!("{} bytes are still free", self.free_bytes());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.unmount();
        drop(self.cache.take());
    }
}

impl Cache {
    fn start(folder: &Path, image: &Path, life: u32) -> Result<Self, String> {
        let (socket, file) = (folder.join(format!("disk{life}.sock")), folder.join(format!("disk{life}.cached")));
        fs::write(&file, "").map_err(|error| error.to_string())?;
        let quiet = |command: &mut Command| {
            let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            started.map_err(|error| format!("{command:?}: {error}"))
        };
        let nbdkit = quiet(
            Command::new("nbdkit")
                .args(["--foreground", "--exit-with-parent", "--filter=error", "--filter=cache", "--unix"])
                .arg(&socket)
                .arg("file")
                .arg(image)
                .args(["cache=writeback", "cache-min-block-size=4K", "error=EIO", "error-pwrite-rate=100%"])
                .arg(format!("error-file={}", folder.join(REFUSES).display())),
        )?;
        // Whatever fails below, what was started so far ends with this.
        let mut cache = Self { nbdkit, nbdfuse: None, file, device: None };
        wait_for("nbdkit", || socket.exists())?;
        cache.nbdfuse = Some(quiet(Command::new("nbdfuse").arg(&cache.file).arg("--unix").arg(&socket))?);
        wait_for("nbdfuse", || fs::metadata(&cache.file).is_ok_and(|file| file.len() > 0))?;
        let output = Command::new("losetup").args(["--find", "--show"]).arg(&cache.file).output();
        let output = output.map_err(|error| format!("losetup: {error}"))?;
        if !output.status.success() {
            return Err(format!("losetup: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        cache.device = Some(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        Ok(cache)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        if let Some(device) = &self.device {
            let _ = run(Command::new("losetup").arg("--detach").arg(device));
        }
        let _ = run(Command::new("fusermount3").args(["-u", "-z"]).arg(&self.file));
        for child in self.nbdfuse.iter_mut().chain([&mut self.nbdkit]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn wait_for(name: &str, mut is_there: impl FnMut() -> bool) -> Result<(), String> {
    let deadline = Instant::now() + CACHE_PATIENCE;
    while !is_there() {
        if Instant::now() > deadline {
            return Err(format!("{name} does not serve"));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
