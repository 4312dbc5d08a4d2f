use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::label::labels;

labels! {
    /// The performative of an event: a communicative act between agents, as in FIPA SC00037J. The PostgreSQL
    /// enumeration `performative`.
    Performative {
        /// Accepts a proposal.
        AcceptProposal = "accept-proposal",
        /// Agrees to do something.
        Agree = "agree",
        /// Withdraws a request.
        Cancel = "cancel",
        /// Calls for proposals.
        CallForProposal = "cfp",
        /// Confirms something that the receiver was uncertain about.
        Confirm = "confirm",
        /// Denies something that the receiver believed.
        Disconfirm = "disconfirm",
        /// Tried and failed.
        Failure = "failure",
        /// States a fact.
        Inform = "inform",
        /// States whether a proposition is true.
        InformIf = "inform-if",
        /// States which object matches a description.
        InformRef = "inform-ref",
        /// Did not understand a message.
        NotUnderstood = "not-understood",
        /// Forwards a message to other agents.
        Propagate = "propagate",
        /// Proposes something.
        Propose = "propose",
        /// Asks the receiver to forward a message to other agents.
        Proxy = "proxy",
        /// Asks whether a proposition is true.
        QueryIf = "query-if",
        /// Asks which object matches a description.
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
        /// Requests notifications of changes.
        Subscribe = "subscribe",
    }
}
