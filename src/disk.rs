//! What this node's disk has room for, between two looks at it.
//!
//! Entries are subtracted while they are on their way to the disk, and until it is looked at
//! again: at full speed a second fills any reserve.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::config::{DISK_BYTES_A_LOOK, DISK_FREE_BYTES_LEAST, DISK_FREE_BYTES_MIN};

/// What this node's disk has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskSpace {
    /// Any write.
    Enough,
    /// Writes that store nothing.
    Low,
    /// No write.
    Exhausted,
}

/// Free disk space, in bytes, below which a node takes fewer writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLimits {
    /// Below this as leader it rejects what stores data.
    pub low: u64,
    /// Below this it takes no entry, as leader or as follower.
    pub exhausted: u64,
}

impl Default for DiskLimits {
    fn default() -> Self {
        DiskLimits { low: DISK_FREE_BYTES_MIN, exhausted: DISK_FREE_BYTES_LEAST }
    }
}

impl DiskLimits {
    fn space(self, free_bytes: u64) -> DiskSpace {
        if free_bytes < self.exhausted {
            DiskSpace::Exhausted
        } else if free_bytes < self.low {
            DiskSpace::Low
        } else {
            DiskSpace::Enough
        }
    }
}

/// The free space of a node's disk.
#[derive(Debug)]
pub struct Disk {
    /// When it was looked up last.
    free_bytes: AtomicU64,
    /// Of entries that are on their way to the disk.
    under_way_bytes: AtomicU64,
    /// Of entries that have reached it since it was looked at.
    written_bytes: AtomicU64,
    low: AtomicU64,
    exhausted: AtomicU64,
    /// Told when much was written since the last look.
    look: Notify,
}

impl Default for Disk {
    /// One that was not looked at yet, and has room for anything.
    fn default() -> Self {
        let limits = DiskLimits::default();
        Disk {
            free_bytes: AtomicU64::new(u64::MAX),
            under_way_bytes: AtomicU64::default(),
            written_bytes: AtomicU64::default(),
            low: AtomicU64::new(limits.low),
            exhausted: AtomicU64::new(limits.exhausted),
            look: Notify::new(),
        }
    }
}

impl Disk {
    /// What there is room for.
    pub fn space(&self) -> DiskSpace {
        let limits =
            DiskLimits { low: self.low.load(Ordering::Relaxed), exhausted: self.exhausted.load(Ordering::Relaxed) };
        limits.space(self.free_bytes())
    }

    /// The free space when it was looked up last, less the entries that count.
    pub fn free_bytes(&self) -> u64 {
        let used_bytes = self.under_way_bytes.load(Ordering::Relaxed) + self.written_bytes.load(Ordering::Relaxed);
        self.free_bytes.load(Ordering::Relaxed).saturating_sub(used_bytes)
    }

    /// Sets this much aside for entries that are on their way to the disk, until the value that is returned is dropped.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Taken {
        let bytes = bytes as u64;
        self.under_way_bytes.fetch_add(bytes, Ordering::Relaxed);
        Taken { disk: self.clone(), bytes }
    }

    /// Looks at the disk by `look`, which returns its free space, the limits, and what else it found. What is written
    /// meanwhile counts twice, until the next look. If the free space is `None`, what was known before applies.
    pub async fn look<T, E>(
        &self,
        look: impl Future<Output = Result<(Option<u64>, DiskLimits, T), E>>,
    ) -> Result<T, E> {
        let before = self.written_bytes.load(Ordering::Relaxed);
        let (free_bytes, limits, found) = look.await?;
        self.low.store(limits.low, Ordering::Relaxed);
        self.exhausted.store(limits.exhausted, Ordering::Relaxed);
        if let Some(free_bytes) = free_bytes {
            self.free_bytes.store(free_bytes, Ordering::Relaxed);
            self.written_bytes.fetch_sub(before, Ordering::Relaxed);
        }
        Ok(found)
    }

    /// Done when much was written since the last look.
    pub async fn look_is_due(&self) {
        self.look.notified().await;
    }
}

/// Space that is set aside for entries.
#[derive(Debug)]
pub struct Taken {
    disk: Arc<Disk>,
    bytes: u64,
}

impl Taken {
    /// Gives the space back: nothing is written.
    pub fn release(mut self) {
        self.disk.under_way_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = 0;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        // In this order, so that the bytes are missing at no moment.
        let before = self.disk.written_bytes.fetch_add(self.bytes, Ordering::Relaxed);
        self.disk.under_way_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        if before / DISK_BYTES_A_LOOK < (before + self.bytes) / DISK_BYTES_A_LOOK {
            self.disk.look.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_looked_at(disk: &Disk, free_bytes: impl Into<Option<u64>>) {
        let limits = DiskLimits { low: 100, exhausted: 10 };
        let looked = async { Ok::<_, ()>((free_bytes.into(), limits, ())) };
        futures_util::future::FutureExt::now_or_never(disk.look(looked)).unwrap().unwrap();
    }

    /// What a disk has room for depends on the two limits, each inclusive.
    #[test]
    fn limits() {
        let disk = Disk::default();
        assert_eq!(disk.space(), DiskSpace::Enough, "before the first look");
        for (free_bytes, expected) in [
            (0, DiskSpace::Exhausted),
            (9, DiskSpace::Exhausted),
            (10, DiskSpace::Low),
            (99, DiskSpace::Low),
            (100, DiskSpace::Enough),
            (u64::MAX, DiskSpace::Enough),
        ] {
            is_looked_at(&disk, free_bytes);
            assert_eq!(disk.space(), expected, "{free_bytes} bytes");
        }
    }

    /// Entries count from when they are taken until the disk is looked at after they were written; what is released
    /// does not count.
    #[test]
    fn entries_count() {
        let disk = Arc::<Disk>::default();
        is_looked_at(&disk, 120);
        disk.take(1000).release();
        let one = disk.take(15);
        assert_eq!(disk.space(), DiskSpace::Enough);
        let other = disk.take(15);
        assert_eq!(disk.space(), DiskSpace::Low);
        drop(one);
        assert_eq!(disk.space(), DiskSpace::Low, "it is written");
        is_looked_at(&disk, 105);
        assert_eq!(disk.space(), DiskSpace::Low, "the other is under way");
        drop(other);
        is_looked_at(&disk, 105);
        assert_eq!(disk.space(), DiskSpace::Enough);
    }
    /// If the free space cannot be looked up, the last known applies, less what was written since.
    #[test]
    fn unknown_space() {
        let disk = Arc::<Disk>::default();
        is_looked_at(&disk, None);
        assert_eq!(disk.space(), DiskSpace::Enough, "nothing was ever known");
        is_looked_at(&disk, 110);
        is_looked_at(&disk, None);
        assert_eq!(disk.space(), DiskSpace::Enough);
        drop(disk.take(15));
        is_looked_at(&disk, None);
        assert_eq!((disk.space(), disk.free_bytes()), (DiskSpace::Low, 95));
        is_looked_at(&disk, 100);
        assert_eq!((disk.space(), disk.free_bytes()), (DiskSpace::Enough, 100));
    }
}
