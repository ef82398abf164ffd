//! What happens to containers, told to containerd: each event is forwarded to its ttrpc address, in the order in which they
//! happened.
//!
//! containerd may be started again meanwhile. So an event is tried for a while, and then dropped: what has become of its
//! containers, containerd asks by itself once it is back.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::MessageFull;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use containerd_shim_protos::ttrpc::asynchronous::transport::Socket;
use containerd_shim_protos::ttrpc::context;
use hull_runtime::chain::chain;
use tokio::net::UnixStream;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::{sleep, timeout};

use super::task::timestamp;

/// How many events may wait for containerd.
const QUEUE: usize = 2048;

/// How often an event is tried.
const TRIES: u32 = 5;

/// How long containerd may take to take one.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);

/// An event of a topic of containerd's.
pub trait Event: MessageFull {
    /// The topic.
    const TOPIC: &'static str;
}

macro_rules! topics {
    ($($event:ident: $topic:ident,)*) => {
        $(impl Event for $event {
            const TOPIC: &'static str = topics::$topic;
        })*
    };
}

topics! {
    TaskCreate: TASK_CREATE_EVENT_TOPIC,
    TaskStart: TASK_START_EVENT_TOPIC,
    TaskOOM: TASK_OOM_EVENT_TOPIC,
    TaskExit: TASK_EXIT_EVENT_TOPIC,
    TaskDelete: TASK_DELETE_EVENT_TOPIC,
    TaskExecAdded: TASK_EXEC_ADDED_EVENT_TOPIC,
    TaskExecStarted: TASK_EXEC_STARTED_EVENT_TOPIC,
    TaskPaused: TASK_PAUSED_EVENT_TOPIC,
    TaskResumed: TASK_RESUMED_EVENT_TOPIC,
}

/// Where events go.
#[derive(Clone, Debug)]
pub struct Events {
    namespace: String,
    queue: Sender<Envelope>,
}

impl Events {
    /// Forwards events of this namespace to containerd's ttrpc address; nowhere without one. To be called inside a
    /// runtime.
    pub fn to(address: Option<PathBuf>, namespace: &str) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(forward_all(address, waiting));
        Self {
            namespace: namespace.to_owned(),
            queue,
        }
    }

    /// Tells of an event. It never waits: what there is no room for is dropped.
    pub fn send<E: Event>(&self, event: &E) {
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(e) => return log::error!("an event of {}: {e}", E::TOPIC),
        };
        let any = Any {
            type_url: E::descriptor().full_name().to_owned(),
            value,
            ..Default::default()
        };
        let envelope = Envelope {
            timestamp: Some(timestamp(SystemTime::now())).into(),
            namespace: self.namespace.clone(),
            topic: E::TOPIC.to_owned(),
            event: Some(any).into(),
            ..Default::default()
        };
        if self.queue.try_send(envelope).is_err() {
            log::warn!(
                "an event of {} is dropped: {QUEUE} wait for containerd",
                E::TOPIC
            );
        }
    }

    /// Waits until all events have been told, or dropped, but no longer than that.
    pub async fn flush(&self, limit: Duration) {
        let all = self.queue.reserve_many(QUEUE);
        if timeout(limit, all).await.is_err() {
            let seconds = limit.as_secs();
            log::warn!("waited {seconds} s for containerd to take the last events, in vain");
        }
    }
}

async fn forward_all(address: Option<PathBuf>, mut waiting: Receiver<Envelope>) {
    let mut client = None;
    while let Some(envelope) = waiting.recv().await {
        let Some(address) = &address else {
            continue;
        };
        let topic = envelope.topic.clone();
        let request = ForwardRequest {
            envelope: Some(envelope).into(),
            ..Default::default()
        };
        let mut failure = String::new();
        for attempt in 0..TRIES {
            // For containerd to come back: there is no event that tells of it.
            sleep(Duration::from_secs(attempt.into())).await;
            match forward(&mut client, address, &request).await {
                Ok(()) => {
                    failure.clear();
                    break;
                }
                Err(e) => failure = e,
            }
        }
        if !failure.is_empty() {
            log::warn!("an event of {topic} is dropped: {failure}");
        }
    }
}

/// Forwards one, on the connection that there is, or else a new one.
async fn forward(
    client: &mut Option<EventsClient>,
    address: &PathBuf,
    request: &ForwardRequest,
) -> Result<(), String> {
    let own = match client.take() {
        Some(own) => own,
        None => {
            let stream = UnixStream::connect(address).await;
            let stream = stream.map_err(|e| format!("connect to {}: {e}", address.display()))?;
            EventsClient::new(Client::new(Socket::from(stream)))
        }
    };
    let context = context::with_duration(FORWARD_TIMEOUT);
    match timeout(FORWARD_TIMEOUT, own.forward(context, request)).await {
        Ok(Ok(_)) => {
            *client = Some(own);
            Ok(())
        }
        Ok(Err(e)) => Err(chain(&e)),
        Err(_) => Err(format!("no answer within {} s", FORWARD_TIMEOUT.as_secs())),
    }
}
