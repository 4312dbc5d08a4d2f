//! The job grants of a tick, and the users that its next transaction acts for.
//!
//! A tick cannot be split into messages, but one user's row can make its transaction fail. Its users are therefore
//! halved until a part of them succeeds. That settles the tick. The other users are still due, and the next tick acts
//! for them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use store::job_grants::{self, JobGrant};
use store::{Fault, Pool};
use uuid::Uuid;

use crate::stages::job_run::Run;

/// Maximum number of users that one tick acts for. The next tick continues with the rest.
const MAX_USERS_PER_TICK: i32 = 1_000;
/// Grants are minted again at this age. The database accepts them for five minutes.
const RENEW_AFTER: Duration = Duration::from_secs(240);
/// Maximum number of times the users of a tick are halved. Isolating one failing user among 1,000 takes ten.
const MAX_SPLITS: u32 = 32;

/// The grants of a tick.
#[derive(Debug)]
pub(crate) struct TickGrants {
    minted_at: Instant,
    /// The grants of the users with work due, by user.
    due: HashMap<i32, String>,
    /// The grants of the platform, which owns the tick, and of users that an earlier delivery of the tick acted for.
    others: Vec<String>,
    /// The users still to be tried, in parts, the next one last.
    parts: Vec<Vec<i32>>,
    splits: u32,
    run: Run,
}

impl TickGrants {
    /// Mints the grants in the database. They are committed before they are used, so that no grant is used whose audit
    /// rows are rolled back.
    ///
    /// # Errors
    /// The [`Fault`] of [`job_grants::mint`], or of the pool.
    pub(crate) async fn mint(pool: &Pool, job: &str, tick: Uuid) -> Result<Self, Fault> {
        Ok(Self::of(minted(pool, job, tick).await?))
    }

    fn of(minted: Vec<JobGrant>) -> Self {
        let users = minted.iter().filter(|grant| grant.is_due).map(|grant| grant.user_id).collect();
        let mut grants = Self {
            minted_at: Instant::now(),
            due: HashMap::new(),
            others: Vec::new(),
            parts: vec![users],
            splits: 0,
            run: Run::begin(),
        };
        grants.replace(minted);
        grants
    }

    /// Replaces grants that would soon expire.
    ///
    /// # Errors
    /// As [`TickGrants::mint`].
    pub(crate) async fn renew(&mut self, pool: &Pool, job: &str, tick: Uuid) -> Result<(), Fault> {
        if self.minted_at.elapsed() >= RENEW_AFTER {
            self.renewed(minted(pool, job, tick).await?);
        }
        Ok(())
    }

    /// Keeps the parts: otherwise a tick whose attempts take long would begin with all users again and again. Users who have nothing
    /// due any more are left out, and those who have since then are left to the next tick.
    fn renewed(&mut self, minted: Vec<JobGrant>) {
        self.replace(minted);
        let Self { due, parts, .. } = self;
        for part in &mut *parts {
            part.retain(|user| due.contains_key(user));
        }
        parts.retain(|part| !part.is_empty());
    }

    fn replace(&mut self, minted: Vec<JobGrant>) {
        let (due, others): (Vec<JobGrant>, Vec<JobGrant>) =
            minted.into_iter().partition(|grant| grant.is_due);
        self.minted_at = Instant::now();
        self.due = due.into_iter().map(|grant| (grant.user_id, grant.grant)).collect();
        self.others = others.into_iter().map(|grant| grant.grant).collect();
    }

    /// The grants of the users that the worker acts for in the next transaction. Empty if no user has work due.
    pub(crate) fn due(&self) -> Vec<&str> {
        let users = self.parts.last().map(Vec::as_slice).unwrap_or_default();
        users.iter().filter_map(|user| self.due.get(user)).map(String::as_str).collect()
    }

    /// The grants under which the inbox row and the events of the tick are read and written.
    pub(crate) fn all(&self) -> Vec<&str> {
        self.due().into_iter().chain(self.others.iter().map(String::as_str)).collect()
    }

    /// What is known of the run so far.
    pub(crate) fn run(&self) -> &Run {
        &self.run
    }

    /// Whether a failed transaction can be tried with fewer users.
    pub(crate) fn can_be_split(&self) -> bool {
        self.parts.len() > 1 || self.parts.last().is_some_and(|part| part.len() > 1)
    }

    /// Halves the users after a failed transaction. False if there are no fewer users to try it with.
    ///
    /// Which half comes first is left to chance: many failing users at one end do not keep those behind them from their turn
    /// tick after tick.
    pub(crate) fn narrow(&mut self, fault: &Fault) -> bool {
        self.splits += 1;
        self.run.failure = Some(format!("not for all users: {fault}"));
        let Some(mut failed) = self.parts.pop() else { return false };
        if failed.len() > 1 {
            let second = failed.split_off(failed.len() / 2);
            let mut halves = [second, failed];
            if fastrand::bool() {
                halves.reverse();
            }
            self.parts.extend(halves);
        }
        !self.parts.is_empty() && self.splits <= MAX_SPLITS
    }
}

async fn minted(pool: &Pool, job: &str, tick: Uuid) -> Result<Vec<JobGrant>, Fault> {
    let mut connection = store::acquire(pool).await?;
    let minted = match job_grants::mint(&mut connection, job, tick, MAX_USERS_PER_TICK).await {
        Ok(minted) => Ok(minted),
        Err(fault) => Err(store::language::in_english(&mut connection, fault).await),
    };
    store::discard_if_unusable(connection, &minted);
    minted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(users: i32) -> TickGrants {
        let platform = JobGrant { user_id: 0, is_due: false, grant: "0".to_owned() };
        let of_user = |user_id: i32| JobGrant { user_id, is_due: true, grant: user_id.to_string() };
        TickGrants::of((1..=users).map(of_user).chain([platform]).collect())
    }

    fn narrow(grants: &mut TickGrants) -> bool {
        grants.narrow(&Fault { kind: store::FaultKind::Permanent, reason: "one of them".to_owned() })
    }

    #[test]
    fn a_tick_of_one_user_cannot_be_split() {
        assert!(!of(0).can_be_split() && !of(1).can_be_split() && of(2).can_be_split());
        let mut grants = of(2);
        assert!(narrow(&mut grants) && grants.can_be_split(), "the other one has its turn");
    }

    #[test]
    fn one_failing_user_leaves_the_others_after_few_attempts() {
        let mut grants = of(1_000);
        let mut attempts = 1;
        while grants.due().contains(&"1") {
            assert!(narrow(&mut grants));
            attempts += 1;
        }
        // Whose turn comes first is chance: it is the others' at once, or after the failing user was found.
        assert!(attempts <= 12 && !grants.due().is_empty(), "{attempts} attempts, then {:?}", grants.due());
        assert_eq!(grants.all().last(), Some(&"0"));
    }

    #[test]
    fn a_user_behind_many_who_fail_has_its_turn_within_some_ticks() {
        let reaches = |users: i32| {
            let (mut grants, last) = (of(users), users.to_string());
            loop {
                if grants.due() == [last.as_str()] {
                    return true;
                }
                if !narrow(&mut grants) {
                    return false;
                }
            }
        };
        for users in [50, 500] {
            let ticks = (1..=2_000).find(|_| reaches(users));
            assert!(ticks.is_some(), "the last of {users} users never had its turn");
        }
    }

    #[test]
    fn users_who_all_fail_end_the_tick() {
        for users in [0, 1, 3, 1_000] {
            let mut grants = of(users);
            let mut attempts = 1;
            while narrow(&mut grants) {
                attempts += 1;
            }
            assert!(attempts <= MAX_SPLITS + 1, "{users} users: {attempts}");
        }
    }

    #[test]
    fn renewed_grants_are_of_the_same_part() {
        let mut grants = of(8);
        while grants.due().len() > 1 {
            assert!(narrow(&mut grants));
        }
        let (user, parts) = (grants.parts[grants.parts.len() - 1][0], grants.parts.clone());
        let again = |user_id: i32, is_due| JobGrant { user_id, is_due, grant: format!("{user_id} again") };
        grants.renewed((0..=9).rev().map(|user| again(user, user > 0)).collect());
        assert_eq!(grants.due(), [format!("{user} again")]);
        assert_eq!(grants.all(), [format!("{user} again"), "0 again".to_owned()]);
        assert_eq!(grants.parts, parts);
        // One who has nothing due any more does not end the tick for the others.
        grants.renewed((0..=9).map(|other| again(other, other > 0 && other != user)).collect());
        assert!(!grants.due().is_empty() && !grants.due().contains(&format!("{user} again").as_str()));
        grants.renewed(vec![again(0, false)]);
        assert!(grants.due().is_empty() && !narrow(&mut grants));
    }
}
