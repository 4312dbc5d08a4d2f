use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::account::{
    DevicePut, DeviceRemove, PasskeyPut, PasskeyRemove, ProfilePut, SecondFactorPut, SecondFactorRemove,
    SettingPut, SettingRemove, UserPut,
};
use crate::agent::{AgentContextPut, AgentContextRemove};
use crate::agent_configuration::{AgentConfigure, AgentProfile, AgentRetire};
use crate::context::{ContextPut, ContextRemove};
use crate::conversation::{ConversationPut, FeedbackPut, MessageAdd, SummaryPut};
use crate::expert_conversation::{ExpertConversationEnd, ExpertConversationPhase, ExpertConversationStart};
use crate::facts::RequestFacts;
use crate::json::check_body;
use crate::knowledge::{KnowledgePropose, RelationPut, RelationRemove, VerdictGive};
use crate::label::labels;
use crate::limit;
use crate::locate::locate;
use crate::malformed::Malformed;
use crate::policy::{PolicyHold, PolicyPut, PolicyRemove};
use crate::privacy::{PrivacyAccess, PrivacyAnonymise, PrivacyErase, PrivacyRectify, PrivacyRestrict};
use crate::router::{DecisionLog, ToolReport};
use crate::session::{SessionClose, SessionOpen};
use crate::subject::{RequestSubject, UserId};
use crate::sync::{SyncStart, SyncStop, SyncUndo};
use crate::task::{ResponseSubmit, TaskCancel, TaskDelegate};
use crate::vector::{VectorIndex, VectorRemove};
use crate::workers::{self, WorkerInfo};

/// A kind of request: its subject, its schema, and the event that it emits.
#[derive(Debug)]
pub struct RequestKind {
    /// The stream that stores it.
    pub stream: &'static str,
    /// The worker that processes it.
    pub worker: &'static str,
    /// The noun of its subject.
    pub noun: &'static str,
    /// The verb of its subject.
    pub verb: &'static str,
    /// The event that it emits.
    pub event: EventType,
    /// Creates the JSON Schema of its body.
    pub schema: fn(SchemaGenerator) -> Schema,
    /// Its golden file. The messages in it are the examples in the AsyncAPI document.
    #[cfg(feature = "asyncapi")]
    pub golden: &'static str,
}

/// The body of one kind of request.
pub trait RequestType: Serialize {
    /// Its kind.
    const KIND: &'static RequestKind;
}

impl RequestKind {
    /// The kind of request with this noun and verb.
    pub fn find(noun: &str, verb: &str) -> Option<&'static Self> {
        REQUESTS.iter().find(|kind| kind.noun == noun && kind.verb == verb).copied()
    }

    /// `noun.verb`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.noun, self.verb)
    }
}

/// The requests of one stream.
pub trait StreamRequest:
    TryFrom<Request, Error = Malformed> + Serialize + Clone + Send + Sync + 'static
{
    /// The kind of the request.
    fn kind(&self) -> &'static RequestKind;

    /// The properties of the request.
    fn facts(&self) -> &dyn RequestFacts;

    /// The properties of the request, mutable.
    fn facts_mut(&mut self) -> &mut dyn RequestFacts;
}

impl WorkerInfo {
    /// The requests that it processes.
    pub fn requests(&self) -> impl Iterator<Item = &'static RequestKind> {
        let name = self.name;
        REQUESTS.iter().copied().filter(move |kind| kind.worker == name)
    }
}

/// The table of requests. It generates the enumerations of requests and events, the decoder and [`REQUESTS`]; the
/// subjects of the streams, the NATS permissions and the AsyncAPI document are derived from it. To add a request, add a
/// line. After `@also` stand the events of a worker that are not the event of one of its requests.
macro_rules! requests {
    ($($(#[$doc:meta])* $own:ident($worker:ident) {
        $($variant:ident: $noun:literal $verb:literal => $event:ident $label:literal $event_doc:literal,)+
        $(@also { $($more:ident $more_label:literal $more_doc:literal,)+ })?
    })+) => {
        /// A decoded request.
        #[derive(Clone, Debug, Serialize)]
        #[serde(untagged)]
        pub enum Request {
            $($(
                #[doc = concat!("`memory.req.*.", $noun, ".", $verb, ".*`")]
                $variant($variant),
            )+)+
        }

        impl Request {
            /// Decodes the body of a request that was published on this subject.
            ///
            /// # Errors
            /// [`Malformed`] names the invalid field, or `subject` if there is no such request.
            pub fn decode(subject: &RequestSubject, body: &[u8]) -> Result<Self, Malformed> {
                check_size(body)?;
                let request = Self::recorded(subject, body)?;
                request.facts().check()?;
                check_body(body).map_err(|problem| Malformed::new("body", problem))?;
                Ok(request)
            }

            /// Decodes a request from the payload of its event. The limits of a whole body are not checked, because
            /// PostgreSQL can make the JSON text longer.
            ///
            /// # Errors
            /// As [`Request::decode`].
            pub fn recorded(subject: &RequestSubject, body: &[u8]) -> Result<Self, Malformed> {
                check_platform(subject)?;
                match (subject.noun.as_str(), subject.verb.as_str()) {
                    $($(($noun, $verb) => read(body).map(Self::$variant),)+)+
                    (noun, verb) => Err(Malformed::new("subject", format!("no request is named {noun}.{verb}"))),
                }
            }

            /// The kind of the request.
            pub fn kind(&self) -> &'static RequestKind {
                match self { $($(Self::$variant(_) => &kinds::$variant,)+)+ }
            }

            /// The properties of the request.
            pub fn facts(&self) -> &dyn RequestFacts {
                match self { $($(Self::$variant(request) => request,)+)+ }
            }

            /// The properties of the request, mutable.
            pub fn facts_mut(&mut self) -> &mut dyn RequestFacts {
                match self { $($(Self::$variant(request) => request,)+)+ }
            }
        }

        $(
            $(#[$doc])*
            #[derive(Clone, Debug, Serialize)]
            #[serde(untagged)]
            pub enum $own {
                $(
                    #[doc = concat!("`memory.req.*.", $noun, ".", $verb, ".*`")]
                    $variant($variant),
                )+
            }

            impl StreamRequest for $own {
                fn kind(&self) -> &'static RequestKind {
                    match self { $(Self::$variant(_) => &kinds::$variant,)+ }
                }

                fn facts(&self) -> &dyn RequestFacts {
                    match self { $(Self::$variant(request) => request,)+ }
                }

                fn facts_mut(&mut self) -> &mut dyn RequestFacts {
                    match self { $(Self::$variant(request) => request,)+ }
                }
            }

            impl TryFrom<Request> for $own {
                type Error = Malformed;

                fn try_from(request: Request) -> Result<Self, Malformed> {
                    match request {
                        $(Request::$variant(request) => Ok(Self::$variant(request)),)+
                        other => Err(Malformed::new(
                            "subject",
                            format!("{} is not for {}", other.kind().name(), workers::$worker.name),
                        )),
                    }
                }
            }
        )+

        labels! {
            /// The type of an event: `noun.verb`, as in its subject. The PostgreSQL enumeration `eventtype`.
            EventType {
                $($(
                    #[doc = $event_doc]
                    $event = $label,
                )+
                $($(
                    #[doc = $more_doc]
                    $more = $more_label,
                )+)?)+
            }
        }

        impl EventType {
            /// The worker whose requests or jobs cause events of this type.
            pub fn worker(self) -> &'static WorkerInfo {
                match self { $($(Self::$event => &workers::$worker,)+ $($(Self::$more => &workers::$worker,)+)?)+ }
            }
        }

        #[allow(non_upper_case_globals)]
        mod kinds {
            use super::{EventType, RequestKind, workers};
            $($(
                pub static $variant: RequestKind = RequestKind {
                    stream: match workers::$worker.stream { Some(stream) => stream, None => "" },
                    worker: workers::$worker.name,
                    noun: $noun,
                    verb: $verb,
                    event: EventType::$event,
                    schema: schemars::SchemaGenerator::into_root_schema_for::<super::$variant>,
                    #[cfg(feature = "asyncapi")]
                    golden: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/", $noun, ".", $verb, ".json")),
                };
            )+)+
        }

        $($(
            impl crate::RequestType for $variant {
                const KIND: &'static RequestKind = &kinds::$variant;
            }
        )+)+

        /// Every request, by stream.
        pub static REQUESTS: &[&RequestKind] = &[$($(&kinds::$variant,)+)+];
    };
}

requests! {
    /// The requests that context-writer processes.
    ContextRequest(CONTEXT_WRITER) {
        UserPut: "user" "put" => UserStored "user.stored" "A user was mirrored.",
        ProfilePut: "profile" "put" => ProfileStored "profile.stored" "A profile was mirrored.",
        SettingPut: "setting" "put" => SettingStored "setting.stored" "A setting was stored.",
        SettingRemove: "setting" "remove" => SettingRemoved "setting.removed" "A setting was removed.",
        DevicePut: "device" "put" => DeviceStored "device.stored" "A device was mirrored.",
        DeviceRemove: "device" "remove" => DeviceRemoved "device.removed" "A device was removed.",
        SecondFactorPut: "second-factor" "put" => SecondFactorStored "second-factor.stored" "A second factor was mirrored.",
        SecondFactorRemove: "second-factor" "remove" => SecondFactorRemoved "second-factor.removed" "A second factor was removed.",
        PasskeyPut: "passkey" "put" => PasskeyStored "passkey.stored" "A WebAuthn credential was mirrored.",
        PasskeyRemove: "passkey" "remove" => PasskeyRemoved "passkey.removed" "A WebAuthn credential was removed.",
        SessionOpen: "session" "open" => SessionOpened "session.opened" "A session was opened or reopened.",
        SessionClose: "session" "close" => SessionClosed "session.closed" "A session was closed.",
        ContextPut: "context" "put" => ContextStored "context.stored" "A context was stored.",
        ContextRemove: "context" "remove" => ContextRemoved "context.removed" "A context was removed.",
        ConversationPut: "conversation" "put" => ConversationStored "conversation.stored" "The description of a conversation was stored.",
        MessageAdd: "message" "add" => MessageAdded "message.added" "A message was added to a conversation.",
        SummaryPut: "summary" "put" => SummaryStored "summary.stored" "A summary was stored.",
        FeedbackPut: "feedback" "put" => FeedbackStored "feedback.stored" "Feedback was stored.",
        AgentContextPut: "agent-context" "put" => AgentContextStored "agent-context.stored" "An agent's context was stored.",
        AgentContextRemove: "agent-context" "remove" => AgentContextRemoved "agent-context.removed" "An agent's context was removed.",
    }
    /// The requests that router-logger processes.
    RouterRequest(ROUTER_LOGGER) {
        DecisionLog: "decision" "log" => DecisionLogged "decision.logged" "A routing decision was logged.",
        ToolReport: "tool" "report" => ToolReported "tool.reported" "A tool was called, returned a result, or failed.",
    }
    /// The requests that vector-indexer processes.
    VectorRequest(VECTOR_INDEXER) {
        VectorIndex: "vector" "index" => VectorIndexed "vector.indexed" "Texts were indexed.",
        VectorRemove: "vector" "remove" => VectorRemoved "vector.removed" "Texts were removed from the index.",
    }
    /// The requests that consensus-builder processes.
    ConsensusRequest(CONSENSUS_BUILDER) {
        AgentConfigure: "agent" "configure" => AgentConfigured "agent.configured" "An agent was configured.",
        AgentRetire: "agent" "retire" => AgentRetired "agent.retired" "An agent was retired.",
        AgentProfile: "agent" "profile" => AgentProfiled "agent.profiled" "The profile of an agent was stored.",
        ExpertConversationStart: "expert-conversation" "start" => ExpertConversationStarted "expert-conversation.started" "A conversation of agents was started.",
        ExpertConversationPhase: "expert-conversation" "phase" => ExpertConversationPhaseChanged "expert-conversation.phase-changed" "A conversation of agents went into another phase.",
        ExpertConversationEnd: "expert-conversation" "end" => ExpertConversationEnded "expert-conversation.ended" "A conversation of agents ended.",
        TaskDelegate: "task" "delegate" => TaskDelegated "task.delegated" "A task was delegated to agents.",
        TaskCancel: "task" "cancel" => TaskCancelled "task.cancelled" "A task was cancelled.",
        ResponseSubmit: "response" "submit" => ResponseRecorded "response.recorded" "The response of an agent was recorded.",
        KnowledgePropose: "knowledge" "propose" => KnowledgeProposed "knowledge.proposed" "Knowledge was proposed.",
        RelationPut: "relation" "put" => RelationStored "relation.stored" "A relation between nodes was stored.",
        RelationRemove: "relation" "remove" => RelationRemoved "relation.removed" "A relation between nodes was removed.",
        VerdictGive: "verdict" "give" => VerdictGiven "verdict.given" "A verdict on a node was given.",
        @also {
            TaskCompleted "task.completed" "A task closed, by its last answer or at its deadline.",
            NodeEstablished "node.established" "A node got the answer of a task.",
            NodeSuperseded "node.superseded" "A node was superseded by a validated one.",
            ReliabilityEstimated "reliability.estimated" "The records of agents were estimated anew from closed tasks.",
        }
    }
    /// The requests that memory-sync processes.
    SyncRequest(MEMORY_SYNC) {
        SyncStart: "sync" "start" => SyncStarted "sync.started" "A sync was started.",
        SyncStop: "sync" "stop" => SyncStopped "sync.stopped" "A sync was stopped.",
        SyncUndo: "sync" "undo" => SyncUndone "sync.undone" "What a sync wrote was taken back, where nothing depends on it.",
        @also {
            SyncCarried "sync.carried" "A round of a sync wrote keys of its target.",
            SyncDisputed "sync.disputed" "A sync found a fact that sessions state differently, and raised a disputed node.",
            SyncCompleted "sync.completed" "A sync carried all that could be carried, or a session that it followed ended.",
            SyncFailed "sync.failed" "One of the sessions of a sync ended before all was carried.",
        }
    }
    /// The requests that retention-cleaner processes.
    RetentionRequest(RETENTION_CLEANER) {
        PolicyPut: "policy" "put" => PolicyStored "policy.stored" "A retention policy was stored.",
        PolicyRemove: "policy" "remove" => PolicyRemoved "policy.removed" "A retention policy was removed.",
        PolicyHold: "policy" "hold" => PolicyHeld "policy.held" "A legal hold was placed, changed or released.",
        PrivacyAccess: "privacy" "access" => AccessRequested "privacy.access-requested" "An export of all that is stored of a user was requested.",
        PrivacyRectify: "privacy" "rectify" => RectificationRequested "privacy.rectification-requested" "The correction of data of a user was requested.",
        PrivacyRestrict: "privacy" "restrict" => RestrictionRequested "privacy.restriction-requested" "The restriction of a user's data was requested.",
        PrivacyAnonymise: "privacy" "anonymise" => AnonymisationRequested "privacy.anonymisation-requested" "The anonymisation of a user was requested.",
        PrivacyErase: "privacy" "erase" => ErasureRequested "privacy.erasure-requested" "The erasure of a user was requested.",
        @also {
            RetentionSwept "retention.swept" "Rows whose retention was over were removed or anonymised.",
            AnomalyDetected "anomaly.detected" "An hour of a service, or the seals, are not as usual.",
        }
    }
}

fn check_size(body: &[u8]) -> Result<(), Malformed> {
    if body.len() > limit::BODY_BYTES {
        let problem = format!("has {} bytes, more than {}", body.len(), limit::BODY_BYTES);
        return Err(Malformed::new("body", problem));
    }
    Ok(())
}

/// User 0, the platform, has settings and retention policies, and no other records.
fn check_platform(subject: &RequestSubject) -> Result<(), Malformed> {
    if subject.user_id == UserId::PLATFORM && !["setting", "policy"].contains(&subject.noun.as_str()) {
        let problem = "user 0 is the platform, which has settings and retention policies only";
        return Err(Malformed::new("subject", problem));
    }
    Ok(())
}

pub(crate) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Malformed> {
    // Serde would decode an array as the fields in their order.
    match body.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => serde_json::from_slice(body).map_err(|_| locate::<T>(body)),
        Some(_) => Err(Malformed::new("body", "must be a JSON object")),
        None => Err(Malformed::new("body", "is empty; a JSON object is expected")),
    }
}
