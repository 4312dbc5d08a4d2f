//! The permissions to publish and subscribe: one table, from which the server's configuration is generated.
//!
//! Identities are separated by NATS accounts. `STORE` has the streams. `PUBLISHERS` has the services, whose requests
//! `STORE` imports. `WORKERS` has the workers, which pull, acknowledge and publish. A worker could have a pulled
//! message delivered to the subject of a request. A stream of the same account would store it again, as a request of
//! another service (verified by experiment). The account `WORKERS` therefore has no stream that stores request
//! subjects.

use std::fmt::Write;

use contract::{
    MEMORY_READER, QUERIES, REQUEST_ROOT, REQUESTS, TOKEN_ISSUE, TOKEN_ISSUER, WORKERS, WorkerInfo,
    wake_subject, woken_by,
};
use trust::Scope;

use crate::Service;
use crate::catalogue::{self, ADVISORY};

/// The broker's account of an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Account {
    /// The streams and their operator.
    Store,
    /// The services.
    Publishers,
    /// Subscribers to events. They are separate from the services, because the broker does not check the reply subject
    /// of a service's query: a service could have an answer published as an event.
    Listeners,
    /// The workers.
    Workers,
    /// The server's own account, for monitoring.
    System,
}

impl Account {
    const ALL: [Self; 5] = [Self::Store, Self::Publishers, Self::Listeners, Self::Workers, Self::System];

    fn name(self) -> &'static str {
        match self {
            Self::Store => "STORE",
            Self::Publishers => "PUBLISHERS",
            Self::Listeners => "LISTENERS",
            Self::Workers => "WORKERS",
            Self::System => "SYSTEM",
        }
    }
}

/// An identity that connects, with its own nkey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The service, the worker, `operator` or `monitor`.
    pub name: String,
    /// Its account.
    pub account: Account,
    /// The only subjects on which it may publish.
    pub publish: Vec<String>,
    /// The only subjects to which it may subscribe.
    pub subscribe: Vec<String>,
}

/// Manages streams, dead letters and keys.
pub(crate) const OPERATOR: &str = "operator";
/// Reads the server's own statistics.
pub(crate) const MONITOR: &str = "monitor";

/// Every identity that may connect: the operator, the services, the workers of the catalogue, and the monitor.
pub fn identities(services: &[Service]) -> Vec<Identity> {
    identities_of(WORKERS, services)
}

fn identities_of(workers: &[WorkerInfo], services: &[Service]) -> Vec<Identity> {
    let mut all = vec![Identity {
        name: OPERATOR.to_owned(),
        account: Account::Store,
        publish: vec![">".to_owned()],
        subscribe: vec![">".to_owned()],
    }];
    // Every name is one identity, with one key and one inbox.
    let is_worker = |service: &&Service| workers.iter().any(|worker| worker.name == service.service);
    all.extend(services.iter().filter(|service| !is_worker(service)).map(of_service));
    all.extend(workers.iter().map(|worker| of_worker(worker, services)));
    all.push(Identity {
        name: MONITOR.to_owned(),
        account: Account::System,
        // Not all of $SYS.REQ.SERVER, which also disconnects clients and reloads the configuration.
        publish: ["VARZ", "CONNZ", "JSZ", "HEALTHZ", "STATSZ"]
            .iter()
            .flat_map(|what| [format!("$SYS.REQ.SERVER.PING.{what}"), format!("$SYS.REQ.SERVER.*.{what}")])
            .collect(),
        subscribe: vec!["$SYS.SERVER.>".to_owned(), format!("_INBOX.{MONITOR}.>")],
    });
    all
}

fn of_service(service: &Service) -> Identity {
    let name = &service.service;
    let scopes: Vec<Scope> = service.scopes.iter().filter_map(|scope| scope.parse().ok()).collect();
    let mut publish: Vec<String> = scopes
        .iter()
        .filter(|scope| REQUESTS.iter().any(|kind| scope.allows(kind.noun, kind.verb)))
        .filter_map(|scope| {
            let text = scope.to_string();
            text.split_once(':').map(|(noun, verb)| format!("{REQUEST_ROOT}.{name}.{noun}.{verb}.*"))
        })
        .collect();
    let queries = QUERIES.iter().filter(|kind| scopes.iter().any(|scope| scope.allows(kind.noun, kind.verb)));
    publish.extend(queries.map(|kind| kind.subject(name)));
    // A subscriber without scopes needs no token.
    if !scopes.is_empty() {
        publish.push(format!("{TOKEN_ISSUE}.{name}"));
    }
    let mut subscribe = vec![format!("_INBOX.{name}.>")];
    subscribe.extend(service.hears.iter().map(|user| format!("memory.event.*.*.{user}")));
    let account = if service.hears.is_empty() { Account::Publishers } else { Account::Listeners };
    Identity { name: name.clone(), account, publish, subscribe }
}

fn of_worker(worker: &WorkerInfo, services: &[Service]) -> Identity {
    let (name, queries) = (worker.name, queries(worker));
    let mut publish = consumed(worker);
    if !publish.is_empty() {
        publish.extend(worker.events().map(|event| format!("memory.event.{event}.*")));
        publish.push(format!("memory.dead.{name}.*"));
        publish.extend(woken_by(worker.events()).into_iter().map(wake_subject));
        // A tick of its own job lets it do nothing that it could not do without one. Never into JOBS: by headers, it could purge
        // the schedules there, and write others.
        publish.extend(worker.woken_subjects());
        publish.extend(publishers(services).map(|service| format!("_INBOX.{}.>", service.service)));
    }
    let mut subscribe = vec![format!("_INBOX.{name}.>")];
    subscribe.extend(worker.woken_jobs().map(wake_subject));
    if !queries.is_empty() {
        // The broker allows one answer to each query, and the worker answers the discovery requests of the NATS service
        // API.
        publish.push("_R_.>".to_owned());
        subscribe.extend(["$SRV.*".to_owned(), format!("$SRV.*.{name}"), format!("$SRV.*.{name}.*")]);
    }
    let subscribe = queries.into_iter().chain(subscribe).collect();
    Identity { name: name.to_owned(), account: Account::Workers, publish, subscribe }
}

/// The subjects on which a worker publishes to pull its messages, to acknowledge them, to read those again that it never
/// settled, and to see how far the workers are that it depends on.
fn consumed(worker: &WorkerInfo) -> Vec<String> {
    let sources = catalogue::sources(worker);
    let mut publish = Vec::new();
    for source in &sources {
        publish.extend(pulled(source.stream, &source.consumer));
        publish.push(format!("{API_PREFIX}.STREAM.MSG.GET.{}", source.stream));
    }
    for other in worker.depends_on {
        publish.extend(other.stream.map(|stream| consumer_info(stream, other.name)));
    }
    if !sources.is_empty() {
        publish.extend(pulled(ADVISORY, &worker.advisory_consumer()));
    }
    publish
}

fn pulled(stream: &str, consumer: &str) -> [String; 3] {
    [
        consumer_info(stream, consumer),
        format!("{API_PREFIX}.CONSUMER.MSG.NEXT.{stream}.{consumer}"),
        format!("$JS.ACK.{stream}.{consumer}.>"),
    ]
}

fn consumer_info(stream: &str, consumer: &str) -> String {
    format!("{API_PREFIX}.CONSUMER.INFO.{stream}.{consumer}")
}

/// The subjects of the queries that a worker answers.
fn queries(worker: &WorkerInfo) -> Vec<String> {
    if worker.name == MEMORY_READER.name {
        QUERIES.iter().map(|kind| kind.subject("*")).collect()
    } else if worker.name == TOKEN_ISSUER.name {
        vec![format!("{TOKEN_ISSUE}.*")]
    } else {
        Vec::new()
    }
}

/// The services that publish requests and queries, and receive outcomes and answers in their inboxes.
fn publishers(services: &[Service]) -> impl Iterator<Item = &Service> {
    services.iter().filter(|service| service.hears.is_empty())
}

/// The variable of the server's configuration that holds an identity's public key.
pub fn variable(identity: &str) -> String {
    format!("NKEY_{}", identity.replace('-', "_").to_uppercase())
}

/// The first line of an accounts file whose public keys are in another file in the same folder.
pub const INCLUDED_NKEYS: &str = "include \"nkeys.conf\"\n";

/// The accounts as a file of the server's configuration. It refers to the public keys by their [`variable`]s, which
/// `nkeys` sets: the text of [`make_nkeys`](crate::make_nkeys), or [`INCLUDED_NKEYS`].
pub fn render(services: &[Service], nkeys: &str) -> String {
    let identities = identities(services);
    let mut text = format!(
        "# Generated by `memfleet nats render` from nats/services.json and the catalogue of workers. The public keys come from\n\
         # nkeys.conf, which `memfleet nats keys` generates.\n\n\
         {nkeys}\nsystem_account: SYSTEM\n\naccounts {{\n",
    );
    for account in Account::ALL {
        // Writing into a string does not fail.
        let _ = writeln!(text, "  {} {{", account.name());
        text.push_str(&exchange(account, services));
        text.push_str("    users = [\n");
        for identity in identities.iter().filter(|identity| identity.account == account) {
            // To the server, an empty list means no restriction.
            let list = |subjects: &[String]| match subjects {
                [] => "deny: [\">\"]".to_owned(),
                _ => {
                    let quoted: Vec<String> = subjects.iter().map(|subject| format!("{subject:?}")).collect();
                    format!("allow: [{}]", quoted.join(", "))
                }
            };
            let _ = writeln!(
                text,
                "      {{\n        # {}\n        nkey: ${}\n        permissions {{\n          publish {{ {} }}\n          \
                 subscribe {{ {} }}\n        }}\n      }}",
                identity.name,
                variable(&identity.name),
                list(&identity.publish),
                list(&identity.subscribe)
            );
        }
        text.push_str("    ]\n  }\n");
    }
    text.push_str("}\n");
    text
}

/// The exports and imports of an account.
fn exchange(account: Account, services: &[Service]) -> String {
    let inboxes = || publishers(services).map(|service| format!("_INBOX.{}.>", service.service));
    let mut lines = Vec::new();
    let from = |kind: &str, account: &str, subject: &str| {
        format!("{{ {kind}: {{ account: {account}, subject: \"{subject}\" }} }}")
    };
    match account {
        Account::Store => {
            lines.push("jetstream: enabled".to_owned());
            let mut exports = vec!["{ service: \"memory.req.>\", accounts: [PUBLISHERS] }".to_owned()];
            exports.extend(SERVICES_OF_STORE.iter().map(|(subject, response)| {
                format!("{{ service: \"{subject}\", response: {response}, accounts: [WORKERS] }}")
            }));
            let imports = [from("service", "WORKERS", "memory.ask.>"), from("service", "WORKERS", "$SRV.>")];
            lines.extend([list("exports", &exports), list("imports", &imports)]);
        }
        Account::Publishers => {
            // Outcomes: a message to an inbox of another account is a request without a reply.
            let exports: Vec<String> =
                inboxes().map(|inbox| format!("{{ service: \"{inbox}\", accounts: [WORKERS] }}")).collect();
            let imports =
                [from("service", "STORE", "memory.req.>"), from("service", "WORKERS", "memory.ask.>")];
            lines.extend([list("exports", &exports), list("imports", &imports)]);
        }
        Account::Listeners => {
            lines.push(list("imports", &[from("stream", "WORKERS", "memory.event.>")]));
        }
        Account::Workers => {
            let exports = [
                "{ service: \"memory.ask.>\", accounts: [STORE, PUBLISHERS] }".to_owned(),
                "{ service: \"$SRV.>\", response: stream, accounts: [STORE] }".to_owned(),
                // From the account that publishes events: the account of the streams receives them as requests, which
                // it cannot export as a stream.
                "{ stream: \"memory.event.>\", accounts: [LISTENERS] }".to_owned(),
            ];
            let mut imports: Vec<String> = SERVICES_OF_STORE
                .iter()
                .map(|(subject, _)| match subject.strip_prefix("$JS.API.") {
                    Some(rest) => format!(
                        "{{ service: {{ account: STORE, subject: \"{subject}\" }}, to: \"{API_PREFIX}.{rest}\" }}"
                    ),
                    None => from("service", "STORE", subject),
                })
                .collect();
            imports.extend(inboxes().map(|inbox| from("service", "PUBLISHERS", &inbox)));
            lines.extend([list("exports", &exports), list("imports", &imports)]);
        }
        Account::System => {}
    }
    lines.iter().fold(String::new(), |text, line| format!("{text}    {line}\n"))
}

/// The prefix of the JetStream API for workers. On `$JS.API`, the server would reply that the workers' own account has
/// no JetStream.
pub const API_PREFIX: &str = "STORE.API";

/// What workers may request from the account of the streams, with the type of the response.
const SERVICES_OF_STORE: [(&str, &str); 7] = [
    ("$JS.API.CONSUMER.INFO.*.*", "singleton"),
    ("$JS.API.CONSUMER.MSG.NEXT.*.*", "stream"),
    ("$JS.API.STREAM.MSG.GET.*", "singleton"),
    ("$JS.ACK.>", "singleton"),
    ("memory.event.>", "singleton"),
    ("memory.dead.>", "singleton"),
    ("memory.woken.>", "singleton"),
];

fn list(name: &str, items: &[String]) -> String {
    let items: String = items.iter().map(|item| format!("      {item}\n")).collect();
    format!("{name} = [\n{items}    ]")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::BTreeSet;

    use contract::CONTEXT_WRITER;

    use super::*;

    fn only(worker: WorkerInfo) -> Identity {
        identities_of(&[worker], &[]).into_iter().find(|one| one.name == worker.name).unwrap()
    }

    #[test]
    fn jobs_add_only_the_permissions_for_their_ticks() {
        let without: BTreeSet<String> = only(CONTEXT_WRITER).publish.into_iter().collect();
        let worker = only(WorkerInfo { jobs: &["sync-forget"], ..CONTEXT_WRITER });
        let with: BTreeSet<String> = worker.publish.into_iter().collect();
        let added: Vec<&str> = with.difference(&without).map(String::as_str).collect();
        let expected = [
            "$JS.ACK.JOBS.context-writer-jobs.>",
            "STORE.API.CONSUMER.INFO.JOBS.context-writer-jobs",
            "STORE.API.CONSUMER.MSG.NEXT.JOBS.context-writer-jobs",
            "STORE.API.STREAM.MSG.GET.JOBS",
        ];
        assert_eq!(added, expected);
        assert!(without.is_subset(&with));
        assert_eq!(worker.subscribe, ["_INBOX.context-writer.>"]);
    }

    #[test]
    fn a_worker_publishes_ticks_of_its_own_woken_jobs_alone() {
        let woken = |worker: WorkerInfo| -> Vec<String> {
            let roots = ["memory.woken.", "memory.job.", "memory.schedule."];
            let publish = only(worker).publish.into_iter();
            publish.filter(|subject| roots.iter().any(|root| subject.starts_with(*root))).collect()
        };
        let worker = WorkerInfo { jobs: &["sync-forget", "sync-carry"], ..CONTEXT_WRITER };
        assert_eq!(woken(worker), ["memory.woken.sync-carry"]);
        assert_eq!(woken(contract::VECTOR_INDEXER), Vec::<String>::new());
    }

    /// Whether two patterns of subjects have a subject in common.
    fn overlap(one: &str, other: &str) -> bool {
        let (mut one, mut other) = (one.split('.'), other.split('.'));
        loop {
            match (one.next(), other.next()) {
                (None, None) => return true,
                (Some(_), None) | (None, Some(_)) => return false,
                (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
                (Some(left), Some(right)) if left == right || left == "*" || right == "*" => {}
                (Some(_), Some(_)) => return false,
            }
        }
    }

    /// In such a stream, a header purges what is there, and another one writes schedules, whatever their target.
    #[test]
    fn nobody_but_the_operator_publishes_into_a_stream_with_schedules() {
        assert!(overlap("memory.job.>", "memory.*.x") && !overlap("memory.job.>", "memory.job"));
        let streams = catalogue::streams(WORKERS);
        let with_schedules = streams.iter().filter(|stream| stream.allow_msg_schedules);
        let subjects: Vec<&String> = with_schedules.flat_map(|stream| &stream.subjects).collect();
        assert!(!subjects.is_empty());
        let may_publish = |patterns: &[String]| {
            let mut pairs = patterns.iter().flat_map(|pattern| subjects.iter().map(move |to| (pattern, *to)));
            pairs.find(|(pattern, to)| overlap(pattern, to)).map(|(pattern, _)| pattern.clone())
        };
        for identity in identities(&Service::shipped().unwrap()).iter().filter(|one| one.name != OPERATOR) {
            assert_eq!(may_publish(identity.publish.as_slice()), None, "{}", identity.name);
        }
        // Nor by a detour: a message that is delivered to such a subject, as the answer to a pull.
        let crossing = SERVICES_OF_STORE.map(|(subject, _)| subject.to_owned());
        assert_eq!(may_publish(crossing.as_slice()), None);
    }

    #[test]
    fn a_worker_publishes_the_events_of_its_own_requests_and_jobs_alone() {
        let events = |worker: WorkerInfo| -> Vec<String> {
            let publish = only(worker).publish.into_iter();
            publish.filter(|subject| subject.starts_with("memory.event.")).collect()
        };
        let of_router = ["memory.event.decision.logged.*", "memory.event.tool.reported.*"];
        assert_eq!(events(contract::ROUTER_LOGGER), of_router);
        let job_events = &[contract::EventType::ContextRemoved];
        let with_job = events(WorkerInfo { job_events, ..contract::ROUTER_LOGGER });
        assert_eq!(with_job, [&of_router[..], &["memory.event.context.removed.*"]].concat());
        assert_eq!(events(MEMORY_READER), Vec::<String>::new());
    }

    #[test]
    fn a_worker_sees_how_far_those_are_that_it_depends_on_and_no_more_of_them() {
        let publish = only(contract::ROUTER_LOGGER).publish;
        let of_other: Vec<&String> = publish.iter().filter(|subject| subject.contains("CONTEXT")).collect();
        assert_eq!(of_other, ["STORE.API.CONSUMER.INFO.CONTEXT.context-writer"]);
    }

    #[test]
    fn every_worker_of_the_catalogue_is_one_identity() {
        let identities = identities(&Service::shipped().unwrap());
        for worker in WORKERS {
            let own: Vec<&Identity> = identities.iter().filter(|one| one.name == worker.name).collect();
            let [identity] = own.as_slice() else { panic!("{}: {own:?}", worker.name) };
            assert_eq!(identity.account, Account::Workers);
            let pulls = identity.publish.iter().any(|subject| subject.contains("MSG.NEXT"));
            assert_eq!(pulls, worker.stream.is_some() || !worker.jobs.is_empty(), "{}", worker.name);
            let answers = identity.subscribe.iter().any(|subject| subject.starts_with(contract::QUERY_ROOT));
            assert!(pulls || answers, "{} neither consumes nor answers", worker.name);
        }
    }
}
