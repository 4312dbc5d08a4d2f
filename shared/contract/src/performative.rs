use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::label::labels;

labels! {
    /// What an event means between agents: the communicative acts of FIPA SC00037J. The PostgreSQL type
    /// `performative`.
    Performative {
        /// Accepts a proposal.
        AcceptProposal = "accept-proposal",
        /// Agrees to do something.
        Agree = "agree",
        /// No longer wants something done.
        Cancel = "cancel",
        /// Calls for proposals.
        CallForProposal = "cfp",
        /// Confirms what was uncertain.
        Confirm = "confirm",
        /// Denies what was believed.
        Disconfirm = "disconfirm",
        /// Tried and failed.
        Failure = "failure",
        /// States a fact.
        Inform = "inform",
        /// Tells whether something holds.
        InformIf = "inform-if",
        /// Tells what something is.
        InformRef = "inform-ref",
        /// Did not understand.
        NotUnderstood = "not-understood",
        /// Passes on to others.
        Propagate = "propagate",
        /// Proposes something.
        Propose = "propose",
        /// Asks to pass on.
        Proxy = "proxy",
        /// Asks whether something holds.
        QueryIf = "query-if",
        /// Asks what something is.
        QueryRef = "query-ref",
        /// Refuses to do something.
        Refuse = "refuse",
        /// Rejects a proposal.
        RejectProposal = "reject-proposal",
        /// Asks for something to be done.
        Request = "request",
        /// Asks for something to be done once a condition holds.
        RequestWhen = "request-when",
        /// Asks for something to be done each time a condition holds.
        RequestWhenever = "request-whenever",
        /// Wants to be told of changes.
        Subscribe = "subscribe",
    }
}
