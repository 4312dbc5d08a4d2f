//! Who may publish and hear what: one table, from which the server's configuration is made.
//!
//! Three accounts keep each other out by their subjects. `STORE` has the streams. `PUBLISHERS` are the services, whose
//! requests it takes in. `WORKERS` pull, acknowledge and publish what comes of it. A worker that pulled a message and had it
//! delivered to the subject of a request would otherwise store it a second time as that service (tried): in its own account
//! that subject leads nowhere.

use std::collections::BTreeSet;
use std::fmt::Write;

use contract::{QUERIES, READER, REQUESTS, TOKEN_ISSUE};
use trust::Scope;

use crate::{Service, Topology};

/// Where an identity lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Account {
    /// The streams, and those who look after them.
    Store,
    /// The services.
    Publishers,
    /// Those who hear events as they happen, apart from the services: the broker does not check where a service wants the answer to
    /// its query, and it could have it told as an event.
    Listeners,
    /// The workers.
    Workers,
    /// The server itself: monitoring.
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

/// Somebody who connects, with a key of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The service, the worker, `operator` or `monitor`.
    pub name: String,
    /// Where it lives.
    pub account: Account,
    /// Subjects that it may publish on, and no others.
    pub publish: Vec<String>,
    /// Subjects that it may hear, and no others.
    pub subscribe: Vec<String>,
}

/// The worker that answers those who ask for tokens.
pub(crate) const TOKEN_ISSUER: &str = "token-issuer";
/// Sees to streams, dead letters and keys.
pub(crate) const OPERATOR: &str = "operator";
/// Reads what the server says of itself.
pub(crate) const MONITOR: &str = "monitor";

/// Everybody who may connect.
pub fn identities(topology: &Topology, services: &[Service]) -> Vec<Identity> {
    let mut all = vec![Identity {
        name: OPERATOR.to_owned(),
        account: Account::Store,
        publish: vec![">".to_owned()],
        subscribe: vec![">".to_owned()],
    }];
    let workers = workers(topology);
    // One name is one identity, with one key and one inbox.
    all.extend(services.iter().filter(|service| !workers.contains(&service.service)).map(of_service));
    all.extend(workers.iter().map(|worker| of_worker(worker, topology, services)));
    all.push(answers(TOKEN_ISSUER, [format!("{TOKEN_ISSUE}.*")]));
    all.push(answers(READER, QUERIES.iter().map(|kind| kind.subject("*"))));
    all.push(Identity {
        name: MONITOR.to_owned(),
        account: Account::System,
        // Not all of $SYS.REQ.SERVER: clients can be thrown out and the configuration reloaded there.
        publish: ["VARZ", "CONNZ", "JSZ", "HEALTHZ", "STATSZ"]
            .iter()
            .flat_map(|what| [format!("$SYS.REQ.SERVER.PING.{what}"), format!("$SYS.REQ.SERVER.*.{what}")])
            .collect(),
        subscribe: vec!["$SYS.SERVER.>".to_owned(), format!("_INBOX.{MONITOR}.>")],
    });
    all
}

/// A worker that answers queries: whoever has asked, once. It tells of itself as well.
fn answers(name: &str, queries: impl IntoIterator<Item = String>) -> Identity {
    let mut subscribe: Vec<String> = queries.into_iter().collect();
    subscribe.push(format!("_INBOX.{name}.>"));
    subscribe.push("$SRV.*".to_owned());
    subscribe.push(format!("$SRV.*.{name}"));
    subscribe.push(format!("$SRV.*.{name}.*"));
    Identity {
        name: name.to_owned(),
        account: Account::Workers,
        publish: vec!["_R_.>".to_owned()],
        subscribe,
    }
}

fn of_service(service: &Service) -> Identity {
    let name = &service.service;
    let scopes: Vec<Scope> = service.scopes.iter().filter_map(|scope| scope.parse().ok()).collect();
    let mut publish: Vec<String> = scopes
        .iter()
        .filter(|scope| REQUESTS.iter().any(|kind| scope.allows(kind.noun, kind.verb)))
        .filter_map(|scope| {
            let text = scope.to_string();
            text.split_once(':').map(|(noun, verb)| format!("memory.req.{name}.{noun}.{verb}.*"))
        })
        .collect();
    let asked = QUERIES.iter().filter(|kind| scopes.iter().any(|scope| scope.allows(kind.noun, kind.verb)));
    publish.extend(asked.map(|kind| kind.subject(name)));
    // Who only listens has no use for a token.
    if !scopes.is_empty() {
        publish.push(format!("{TOKEN_ISSUE}.{name}"));
    }
    let mut subscribe = vec![format!("_INBOX.{name}.>")];
    subscribe.extend(service.hears.iter().map(|user| format!("memory.event.*.*.{user}")));
    let account = if service.hears.is_empty() { Account::Publishers } else { Account::Listeners };
    Identity { name: name.clone(), account, publish, subscribe }
}

/// The workers with a stream of their own.
fn workers(topology: &Topology) -> BTreeSet<String> {
    let own = topology.consumers.iter().filter(|consumer| consumer.stream != ADVISORY);
    own.map(|consumer| consumer.name.clone()).collect()
}

const ADVISORY: &str = "ADVISORY";

fn of_worker(worker: &str, topology: &Topology, services: &[Service]) -> Identity {
    let advisory = format!("{worker}-advisory");
    let mut publish = Vec::new();
    for consumer in &topology.consumers {
        let (stream, name) = (&consumer.stream, &consumer.name);
        if name != worker && *name != advisory {
            continue;
        }
        publish.push(format!("{API_PREFIX}.CONSUMER.INFO.{stream}.{name}"));
        publish.push(format!("{API_PREFIX}.CONSUMER.MSG.NEXT.{stream}.{name}"));
        publish.push(format!("$JS.ACK.{stream}.{name}.>"));
        if name == worker {
            // What was never settled is read once more.
            publish.push(format!("{API_PREFIX}.STREAM.MSG.GET.{stream}"));
        }
    }
    publish.push("memory.event.>".to_owned());
    publish.push(format!("memory.dead.{worker}.*"));
    let asking = services.iter().filter(|service| service.hears.is_empty());
    publish.extend(asking.map(|service| format!("_INBOX.{}.>", service.service)));
    let (account, subscribe) = (Account::Workers, vec![format!("_INBOX.{worker}.>")]);
    Identity { name: worker.to_owned(), account, publish, subscribe }
}

/// The variable of the server's configuration that holds an identity's public key.
pub fn variable(identity: &str) -> String {
    format!("NKEY_{}", identity.replace('-', "_").to_uppercase())
}

/// What a file of accounts begins with that finds the public keys in another file beside it.
pub const INCLUDED_NKEYS: &str = "include \"nkeys.conf\"\n";

/// The accounts as a file of the server's configuration. It refers to the public keys by their [`variable`]s, which `nkeys`
/// sets: the text of [`make_nkeys`](crate::make_nkeys), or [`INCLUDED_NKEYS`].
pub fn render(topology: &Topology, services: &[Service], nkeys: &str) -> String {
    let identities = identities(topology, services);
    let mut text = format!(
        "# Made by `memfleet nats render` from nats/services.json, nats/consumers and the table in\n\
         # shared/topology/src/permission.rs. The public keys come from nkeys.conf, which `memfleet nats keys` makes.\n\n\
         {nkeys}\nsystem_account: SYSTEM\n\naccounts {{\n",
    );
    for account in Account::ALL {
        // Writing into a string does not fail.
        let _ = writeln!(text, "  {} {{", account.name());
        text.push_str(&exchange(account, services));
        text.push_str("    users = [\n");
        for identity in identities.iter().filter(|identity| identity.account == account) {
            // To the server, nothing that is allowed is nothing that is said.
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

/// What an account gives to others, and takes from them.
fn exchange(account: Account, services: &[Service]) -> String {
    let publishers = services.iter().filter(|service| service.hears.is_empty());
    let inboxes = || publishers.clone().map(|service| format!("_INBOX.{}.>", service.service));
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
            // Outcomes: a message into another account's inbox arrives as a request without an answer.
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
                // Where it comes from: what the account of the streams is handed as a request it hands on to nobody.
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

/// Under which subjects workers ask the API of JetStream, in place of `$JS.API`: on those the server answers that their own
/// account has no JetStream.
pub const API_PREFIX: &str = "STORE.API";

/// What workers ask of the streams, and whether one answer comes or many.
const SERVICES_OF_STORE: [(&str, &str); 6] = [
    ("$JS.API.CONSUMER.INFO.*.*", "singleton"),
    ("$JS.API.CONSUMER.MSG.NEXT.*.*", "stream"),
    ("$JS.API.STREAM.MSG.GET.*", "singleton"),
    ("$JS.ACK.>", "singleton"),
    ("memory.event.>", "singleton"),
    ("memory.dead.>", "singleton"),
];

fn list(name: &str, items: &[String]) -> String {
    let items: String = items.iter().map(|item| format!("      {item}\n")).collect();
    format!("{name} = [\n{items}    ]")
}
