//! What becomes of the copies that were under way when their channel or connection ended: decided from plain data.

use crate::broker::{CopyForm, Fault, FaultKind, Properties};

/// What becomes of one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Becomes {
    /// It is published again.
    Again,
    /// The same, but with no other beside it: the broker may have closed the channel over this one.
    AgainAlone,
    /// The same, in a form that has less to refuse.
    AgainAs(CopyForm),
    /// The broker takes it in no form: it is tried again after a pause.
    Later,
    /// This user may not publish it, or its queue is unfit.
    NotAllowed,
}

/// Of a copy of `original` in this form, whose settlement is not known. `alone`: no other one was under way.
pub(super) fn after(fault: &Fault, form: CopyForm, original: &Properties, alone: bool) -> Becomes {
    match fault.kind {
        FaultKind::Unacceptable | FaultKind::TooLarge(None) if alone => {
            form.next(&fault.to_string(), original).map_or(Becomes::Later, Becomes::AgainAs)
        }
        FaultKind::Unacceptable | FaultKind::TooLarge(None) => Becomes::AgainAlone,
        FaultKind::Refused | FaultKind::Configuration => Becomes::NotAllowed,
        // Where the broker has named its limit, that tells which one it was.
        _ => Becomes::Again,
    }
}

/// Whether it ended over what a copy is. That is no reason to wait before the next attempt.
pub(super) fn is_over_a_copy(fault: &Fault) -> bool {
    matches!(fault.kind, FaultKind::Unacceptable | FaultKind::TooLarge(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Scope;
    use crate::broker::testing::fault;

    #[test]
    fn each_end_has_its_consequence() {
        use Becomes::{Again, AgainAlone, AgainAs, Later, NotAllowed};
        let original = Properties::default().with_id("id");
        for (kind, form, alone, becomes) in [
            (FaultKind::Lost, CopyForm::Full, true, Again),
            (FaultKind::Lost, CopyForm::Bare, false, Again),
            (FaultKind::NoResources, CopyForm::Full, true, Again),
            (FaultKind::NotFound, CopyForm::Full, true, Again),
            (FaultKind::TooLarge(Some(9)), CopyForm::Full, true, Again),
            (FaultKind::TooLarge(Some(9)), CopyForm::Full, false, Again),
            (FaultKind::TooLarge(None), CopyForm::Full, true, AgainAs(CopyForm::Bare)),
            (FaultKind::TooLarge(None), CopyForm::Full, false, AgainAlone),
            (FaultKind::Unacceptable, CopyForm::Full, false, AgainAlone),
            (FaultKind::Unacceptable, CopyForm::Full, true, AgainAs(CopyForm::Bare)),
            (FaultKind::Unacceptable, CopyForm::WithoutReplyTo, true, AgainAs(CopyForm::Bare)),
            (FaultKind::Unacceptable, CopyForm::Bare, true, Later),
            (FaultKind::Unacceptable, CopyForm::Bare, false, AgainAlone),
            (FaultKind::Refused, CopyForm::Full, true, NotAllowed),
            (FaultKind::Refused, CopyForm::Full, false, NotAllowed),
            (FaultKind::Configuration, CopyForm::Bare, false, NotAllowed),
        ] {
            for scope in [Scope::Channel, Scope::Connection] {
                let fault = fault(scope, kind, "words");
                let what = format!("{kind:?}, {form:?}, alone: {alone}");
                assert_eq!(after(&fault, form, &original, alone), becomes, "{what}");
            }
        }
    }

    #[test]
    fn only_what_a_copy_is_needs_no_pause() {
        for (kind, needs_none) in [
            (FaultKind::Unacceptable, true),
            (FaultKind::TooLarge(None), true),
            (FaultKind::TooLarge(Some(9)), true),
            (FaultKind::Lost, false),
            (FaultKind::Refused, false),
            (FaultKind::Configuration, false),
        ] {
            assert_eq!(is_over_a_copy(&fault(Scope::Channel, kind, "")), needs_none, "{kind:?}");
        }
    }
}
