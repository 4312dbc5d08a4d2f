use super::*;

fn difference(a: &str, b: &str) -> Option<Difference> {
    let rules = Rules::current().unwrap();
    let mut vocabulary = Vocabulary::default();
    let (x, y) = (Signature::of(a, &rules, &mut vocabulary), Signature::of(b, &rules, &mut vocabulary));
    let result = x.difference(&y, &rules);
    assert_eq!(result, y.difference(&x, &rules), "not symmetric: {a:?} {b:?}");
    assert_eq!(x.difference(&x, &rules), None, "{a:?}");
    result
}

#[test]
fn texts_that_differ_in_a_number_or_unit_are_kept_apart() {
    for (a, b) in [
        ("It takes 5 minutes.", "It takes 6 minutes."),
        ("It takes 5 minutes.", "It takes 5 hours."),
        ("It takes 5 minutes.", "It takes minutes."),
        ("There are two moons.", "There are three moons."),
        ("The plant makes 5 MW.", "The plant makes 5 mW."),
        ("The file has 5kb.", "The file has 5kB."),
        ("It costs $5.", "It costs €5."),
        ("It costs $5.", "It costs 6 dollars."),
        ("It is -5 °C.", "It is 5 °C."),
        ("It is 20 °C.", "It is 20 °F."),
        ("The mass is 10²³ kg.", "The mass is 10²⁴ kg."),
        ("It was 1,500.", "It was 1.5."),
        ("It grew by 3%.", "It grew by 3."),
        ("距離は5公里です", "距離は6公里です"),
        ("Version 1.10 is affected.", "Version 1.11 is affected."),
    ] {
        assert_eq!(difference(a, b), Some(Difference::Number), "{a:?} {b:?}");
    }
}

#[test]
fn a_number_is_the_same_in_any_spelling() {
    for (a, b) in [
        ("It takes 5 minutes.", "It takes five mins."),
        ("The height is 1,500 m.", "The height is 1500 metres."),
        ("It costs $5.", "It costs 5 dollars."),
        ("It is 3.0 km.", "It is 3 kilometers."),
        ("It is 20 °C.", "It is 20 degrees".replace("degrees", "celsius").as_str()),
        ("It was the 3rd try.", "It was the third try."),
        ("Es sind 1,5 kg.", "Es sind 1.5 kg."),
    ] {
        assert_eq!(difference(a, b), None, "{a:?} {b:?}");
    }
}

#[test]
fn texts_that_differ_in_a_negation_are_kept_apart() {
    for (a, b) in [
        ("The service is available.", "The service is not available."),
        ("The service is available.", "The service isn’t available."),
        ("It works with TLS.", "It works without TLS."),
        ("Das ist möglich.", "Das ist nicht möglich."),
        ("这是对的", "这是不对的"),
        ("これは正しい", "これは正しくない"),
    ] {
        assert_eq!(difference(a, b), Some(Difference::Negation), "{a:?} {b:?}");
    }
    assert_eq!(difference("It is not ready.", "It isn't ready."), None);
}

#[test]
fn opposites_are_kept_apart() {
    for (a, b) in [
        ("Prices will increase.", "Prices will decrease."),
        ("It happens before the deploy.", "It happens after the deploy."),
        ("Turn left.", "Turn right."),
        ("The latency is higher.", "The latency is lower."),
    ] {
        assert_eq!(difference(a, b), Some(Difference::Opposite), "{a:?} {b:?}");
    }
    assert_eq!(difference("Yes, it is.", "That is right, it is."), None);
}

#[test]
fn texts_that_differ_in_a_name_are_kept_apart() {
    for (a, b) in [
        ("The capital is Paris.", "The capital is London."),
        ("Paris is the capital.", "London is the capital."),
        ("Paris is the capital.", "The capital is London."),
        ("It was World War I.", "It was World War II."),
        ("Alice wrote it.", "It was written by Alice and Bob."),
        ("the answer is paris", "the answer is london"),
        ("paris", "london"),
        ("首都是巴黎", "首都是伦敦"),
        ("首都はパリです", "首都はロンドンです"),
        ("เมืองหลวงคือปารีส", "เมืองหลวงคือลอนดอน"),
    ] {
        assert_eq!(difference(a, b), Some(Difference::Name), "{a:?} {b:?}");
    }
}

#[test]
fn what_says_the_same_is_not_kept_apart() {
    for (a, b) in [
        ("Paris is the capital.", "The capital is Paris."),
        ("The capital of France is Paris.", "Paris is France's capital."),
        ("Photosynthesis makes sugar.", "Plants make sugar by photosynthesis."),
        ("The cat is big.", "The cat is large."),
        ("法国的首都是巴黎", "法国首都是巴黎"),
        ("", ""),
    ] {
        assert_eq!(difference(a, b), None, "{a:?} {b:?}");
    }
}
