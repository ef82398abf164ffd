//! Configuration spaces as the transport reads them. That of most devices is fixed; one that changes while
//! the guest runs has a generation, by which a driver notices that it has read parts of two (virtio 1.3,
//! 2.5).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::VirtioDevice;

/// The bytes, shared by the device, which writes them, and the transport, which reads them on vCPU threads
/// without the device's lock.
#[derive(Debug)]
pub struct LiveConfig(Mutex<Versioned>);

#[derive(Debug)]
struct Versioned {
    bytes: Box<[u8]>,
    generation: u32,
}

impl LiveConfig {
    /// A configuration space that begins with these bytes.
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self(Mutex::new(Versioned {
            bytes: bytes.into(),
            generation: 0,
        }))
    }

    /// Replaces the bytes. Returns whether they were others.
    pub(super) fn set(&self, bytes: &[u8]) -> bool {
        let mut config = self.lock();
        if *config.bytes == *bytes {
            return false;
        }
        config.bytes = bytes.into();
        config.generation = config.generation.wrapping_add(1);
        true
    }

    /// Copies what lies at `offset`, as far as there is something.
    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        let config = self.lock();
        let rest = config.bytes.get(offset..).unwrap_or_default();
        for (byte, value) in data.iter_mut().zip(rest) {
            *byte = *value;
        }
    }

    /// The register `ConfigGeneration`.
    pub(super) fn generation(&self) -> u32 {
        self.lock().generation
    }

    fn lock(&self) -> MutexGuard<'_, Versioned> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A device's configuration, which can be read without waiting for the device's lock.
#[derive(Clone)]
pub(super) enum ConfigSpace {
    /// A copy of one that does not change.
    Fixed(Arc<[u8]>),
    /// One that the device changes.
    Live(Arc<LiveConfig>),
}

impl Default for ConfigSpace {
    fn default() -> Self {
        Self::Fixed(Arc::default())
    }
}

impl ConfigSpace {
    pub(super) fn of(device: &dyn VirtioDevice) -> Self {
        match device.live_config() {
            Some(live) => Self::Live(live),
            None => Self::Fixed(device.config().into()),
        }
    }

    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        match self {
            Self::Live(config) => config.read(offset, data),
            Self::Fixed(config) => {
                let rest = config.get(offset..).unwrap_or_default();
                for (byte, value) in data.iter_mut().zip(rest) {
                    *byte = *value;
                }
            }
        }
    }

    /// Whether it ever changes.
    pub(super) fn changes(&self) -> bool {
        matches!(self, Self::Live(_))
    }

    pub(super) fn generation(&self) -> u32 {
        match self {
            Self::Live(config) => config.generation(),
            Self::Fixed(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_has_a_generation_of_its_own() {
        let config = LiveConfig::new(&[1, 2, 3]);
        assert!(!config.set(&[1, 2, 3]));
        assert_eq!(config.generation(), 0);
        assert!(config.set(&[1, 2, 4]));
        assert_eq!(config.generation(), 1);
        let mut data = [9; 4];
        config.read(1, &mut data);
        assert_eq!(data, [2, 4, 9, 9]);
        config.read(4, &mut data);
        config.read(usize::MAX, &mut data);
        assert_eq!(data, [2, 4, 9, 9]);
    }
}
