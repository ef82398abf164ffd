//! The table of a sandbox's containers by id: those that exist, and those being created or deleted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::container::Container;
use crate::error::Error;

/// The table.
#[derive(Clone, Default)]
pub struct Containers(Arc<Mutex<HashMap<String, Slot>>>);

enum Slot {
    /// The container is being created, until the sender is dropped.
    Creating(watch::Receiver<()>),
    Created(Arc<Container>),
    /// The container is being deleted, until the sender is dropped, and can't be used any more.
    Deleting(watch::Receiver<()>),
}

/// A reserved id. Dropped without [`Reservation::fill`], it is free again.
pub struct Reservation {
    containers: Containers,
    id: String,
    filled: bool,
    /// The last field to be dropped: the table has changed by then.
    _done: watch::Sender<()>,
}

impl Reservation {
    /// Puts the container under the id.
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
            self.containers.remove(&self.id);
        }
    }
}

impl Containers {
    /// Reserves an id for a container that is being created.
    ///
    /// # Errors
    /// When it is taken.
    pub fn reserve(&self, id: &str) -> Result<Reservation, Error> {
        let mut slots = self.lock();
        if slots.contains_key(id) {
            return Err(Error::AlreadyExists(format!("container {id}")));
        }
        let (done, creation) = watch::channel(());
        slots.insert(id.to_owned(), Slot::Creating(creation));
        Ok(Reservation {
            containers: self.clone(),
            id: id.to_owned(),
            filled: false,
            _done: done,
        })
    }

    /// The container of this id.
    ///
    /// # Errors
    /// When there is none, or none yet.
    pub fn find(&self, id: &str) -> Result<Arc<Container>, Error> {
        match self.lock().get(id) {
            Some(Slot::Created(container)) => Ok(Arc::clone(container)),
            Some(Slot::Creating(_)) => Err(Error::WrongState {
                what: format!("container {id}"),
                state: "being created",
                wanted: "created",
            }),
            Some(Slot::Deleting(_)) | None => Err(Error::NotFound(format!("container {id}"))),
        }
    }

    /// All containers that are neither being created nor deleted.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Container>> {
        let created = |slot: &Slot| match slot {
            Slot::Created(container) => Some(Arc::clone(container)),
            Slot::Creating(_) | Slot::Deleting(_) => None,
        };
        self.lock().values().filter_map(created).collect()
    }

    /// Waits until nobody creates or deletes a container of this id.
    pub async fn wait_until_settled(&self, id: &str) {
        while let Some(mut change) = self.pending_change(id) {
            let _ = change.changed().await; // nothing is ever sent: it returns when the sender is dropped
        }
    }

    fn pending_change(&self, id: &str) -> Option<watch::Receiver<()>> {
        match self.lock().get(id) {
            Some(Slot::Creating(change) | Slot::Deleting(change)) => Some(change.clone()),
            _ => None,
        }
    }

    /// Makes a container unavailable while it is being deleted. The caller drops the sender once that is done.
    #[must_use]
    pub fn begin_deletion(&self, id: &str) -> watch::Sender<()> {
        let (done, deletion) = watch::channel(());
        self.lock().insert(id.to_owned(), Slot::Deleting(deletion));
        done
    }

    /// Makes a container available again that could not be deleted.
    pub fn restore(&self, container: Arc<Container>) {
        self.lock()
            .insert(container.id.clone(), Slot::Created(container));
    }

    /// Frees an id.
    pub fn remove(&self, id: &str) {
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
    async fn a_failed_creation_is_waited_for_and_frees_its_id() {
        let containers = Containers::default();
        containers.wait_until_settled("c").await;
        let reservation = containers.reserve("c").expect("free");
        assert!(matches!(
            containers.reserve("c"),
            Err(Error::AlreadyExists(_))
        ));
        assert!(matches!(
            containers.find("c"),
            Err(Error::WrongState { .. })
        ));
        let waiting = containers.clone();
        let waiting = tokio::spawn(async move { waiting.wait_until_settled("c").await });
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(!waiting.is_finished());
        drop(reservation);
        waiting.await.expect("it is over");
        assert!(matches!(containers.find("c"), Err(Error::NotFound(_))));
    }
}
