//! The table of a sandbox's containers, by id: those that are there, and those that come and go.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::container::Container;
use crate::error::Error;

/// The containers.
#[derive(Clone, Default)]
pub struct Containers(Arc<Mutex<HashMap<String, Slot>>>);

enum Slot {
    /// It is being created, until the other end is dropped.
    Creating(watch::Receiver<()>),
    Created(Arc<Container>),
    /// It is being deleted, until the other end is dropped, and can't be used any more.
    Deleting(watch::Receiver<()>),
}

/// An id that is free again unless it is filled.
pub struct Reservation {
    containers: Containers,
    id: String,
    filled: bool,
    /// Dropped last of all, when the table has changed.
    _is_over: watch::Sender<()>,
}

impl Reservation {
    /// Puts the container there.
    pub fn fill(mut self, container: Arc<Container>) {
        self.filled = true;
        self.containers
            .lock()
            .insert(self.id.clone(), Slot::Created(container));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.filled {
            self.containers.forget(&self.id);
        }
    }
}

impl Containers {
    /// Sets an id aside.
    ///
    /// # Errors
    /// When it is taken.
    pub fn reserve(&self, id: &str) -> Result<Reservation, Error> {
        let mut slots = self.lock();
        if slots.contains_key(id) {
            return Err(Error::Exists(format!("container {id}")));
        }
        let (is_over, creation) = watch::channel(());
        slots.insert(id.to_owned(), Slot::Creating(creation));
        Ok(Reservation {
            containers: self.clone(),
            id: id.to_owned(),
            filled: false,
            _is_over: is_over,
        })
    }

    /// The container of this id.
    ///
    /// # Errors
    /// When there is none, or none yet.
    pub fn find(&self, id: &str) -> Result<Arc<Container>, Error> {
        match self.lock().get(id) {
            Some(Slot::Created(container)) => Ok(Arc::clone(container)),
            Some(Slot::Creating(_)) => Err(Error::State {
                what: format!("container {id}"),
                state: "being created",
                wanted: "created",
            }),
            Some(Slot::Deleting(_)) | None => Err(Error::Missing(format!("container {id}"))),
        }
    }

    /// All that are there.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Container>> {
        let created = |slot: &Slot| match slot {
            Slot::Created(container) => Some(Arc::clone(container)),
            Slot::Creating(_) | Slot::Deleting(_) => None,
        };
        self.lock().values().filter_map(created).collect()
    }

    /// Waits until nobody creates or deletes a container of this id.
    pub async fn settled(&self, id: &str) {
        while let Some(mut change) = self.change(id) {
            let _ = change.changed().await; // it only ends
        }
    }

    fn change(&self, id: &str) -> Option<watch::Receiver<()>> {
        match self.lock().get(id) {
            Some(Slot::Creating(change) | Slot::Deleting(change)) => Some(change.clone()),
            _ => None,
        }
    }

    /// Keeps everybody from a container that is being deleted. What is returned is to be dropped once that is over.
    #[must_use]
    pub fn hide(&self, id: &str) -> watch::Sender<()> {
        let (is_over, deletion) = watch::channel(());
        self.lock().insert(id.to_owned(), Slot::Deleting(deletion));
        is_over
    }

    /// Shows one again that could not be deleted.
    pub fn show(&self, container: Arc<Container>) {
        self.lock()
            .insert(container.id.clone(), Slot::Created(container));
    }

    /// Frees an id.
    pub fn forget(&self, id: &str) {
        self.lock().remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_creation_that_fails_is_waited_for_and_frees_its_id() {
        let containers = Containers::default();
        containers.settled("c").await;
        let reservation = containers.reserve("c").expect("free");
        assert!(matches!(containers.reserve("c"), Err(Error::Exists(_))));
        assert!(matches!(containers.find("c"), Err(Error::State { .. })));
        let waiting = containers.clone();
        let waiting = tokio::spawn(async move { waiting.settled("c").await });
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(!waiting.is_finished());
        drop(reservation);
        waiting.await.expect("it is over");
        assert!(matches!(containers.find("c"), Err(Error::Missing(_))));
    }
}
