//! The free disk space, between two checks of it.
//!
//! Entries are subtracted from the moment they are accepted until the next check: at full speed, one second fills any
//! reserve.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::config::{DISK_BYTES_PER_CHECK, DISK_FREE_BYTES_LEAST, DISK_FREE_BYTES_MIN};

/// Which writes the disk has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskSpace {
    /// Any write.
    Enough,
    /// Writes that store nothing.
    Low,
    /// No write.
    Exhausted,
}

/// Free disk space, in bytes, below which a node rejects writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLimits {
    /// Below this, a leader rejects writes that store data.
    pub low: u64,
    /// Below this, a node accepts no entry, as leader or as follower.
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
    /// As of the last check.
    free_bytes: AtomicU64,
    /// Entries that are not written yet.
    under_way_bytes: AtomicU64,
    /// Entries that were written since the last check.
    written_bytes: AtomicU64,
    low: AtomicU64,
    exhausted: AtomicU64,
    /// Notified when much was written since the last check.
    look: Notify,
}

impl Default for Disk {
    /// Before the first check, there is room for anything.
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
    /// Which writes there is room for.
    pub fn space(&self) -> DiskSpace {
        self.limits().space(self.free_bytes())
    }

    /// The limits at the last check.
    pub fn limits(&self) -> DiskLimits {
        DiskLimits { low: self.low.load(Ordering::Relaxed), exhausted: self.exhausted.load(Ordering::Relaxed) }
    }

    /// The free space at the last check, less the entries since, in bytes.
    pub fn free_bytes(&self) -> u64 {
        let used_bytes = self.under_way_bytes.load(Ordering::Relaxed) + self.written_bytes.load(Ordering::Relaxed);
        self.free_bytes.load(Ordering::Relaxed).saturating_sub(used_bytes)
    }

    /// Whether there is room for a file of this length for a client, after which every write still has room.
    pub fn has_room_for(&self, bytes: u64) -> bool {
        self.free_bytes().saturating_sub(bytes) >= self.low.load(Ordering::Relaxed)
    }

    /// Subtracts the bytes of entries that are about to be written. Drop the returned value once they are.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Taken {
        let bytes = bytes as u64;
        self.under_way_bytes.fetch_add(bytes, Ordering::Relaxed);
        Taken { disk: self.clone(), bytes }
    }

    /// Checks the disk by `look`, which returns the free space, the limits, and a result for the caller. Entries that
    /// are written meanwhile count twice until the next check. If the free space is `None`, the last known one applies.
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

    /// Resolves when much was written since the last check.
    pub async fn look_is_due(&self) {
        self.look.notified().await;
    }
}

/// Space that is subtracted for entries.
#[derive(Debug)]
pub struct Taken {
    disk: Arc<Disk>,
    bytes: u64,
}

impl Taken {
    /// Gives the space back, because the entries are not written.
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
        // In this order, so that the bytes are subtracted at every moment.
        let before = self.disk.written_bytes.fetch_add(self.bytes, Ordering::Relaxed);
        self.disk.under_way_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        if before / DISK_BYTES_PER_CHECK < (before + self.bytes) / DISK_BYTES_PER_CHECK {
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

    /// The two limits, each inclusive, decide which writes there is room for.
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

    /// A file for a client must leave the space that writes need.
    #[test]
    fn files_for_clients() {
        let disk = Arc::<Disk>::default();
        assert!(disk.has_room_for(1 << 40), "before the first look");
        is_looked_at(&disk, 150);
        assert!(disk.has_room_for(50) && !disk.has_room_for(51));
        let _taken = disk.take(20);
        assert!(disk.has_room_for(30) && !disk.has_room_for(31));
        assert!(!disk.has_room_for(u64::MAX));
    }

    /// Entries are subtracted until the first check after they were written, or until they are released.
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
        assert_eq!(disk.space(), DiskSpace::Low, "the other is not written yet");
        drop(other);
        is_looked_at(&disk, 105);
        assert_eq!(disk.space(), DiskSpace::Enough);
    }

    /// If the free space is unknown, the last known one applies, less the entries since.
    #[test]
    fn unknown_space() {
        let disk = Arc::<Disk>::default();
        is_looked_at(&disk, None);
        assert_eq!(disk.space(), DiskSpace::Enough, "it was never known");
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
