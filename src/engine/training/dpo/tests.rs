use tch::Kind;

use super::*;

fn doubles(values: &[f64]) -> Tensor {
    ops::doubles(values, Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    ops::to_doubles(tensor).unwrap()
}

fn nearly(ours: &[f64], expected: &[f64], bound: f64, what: &str) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    for (ours, expected) in ours.iter().zip(expected) {
        assert!((ours - expected).abs() <= bound, "{what}: {ours} instead of {expected}");
    }
}

#[test]
fn gradients_of_the_loss_are_its_slopes_and_margins_beyond_bounds_stay_finite() {
    let reference =
        LogProbs { chosen: doubles(&[-10.0, -3.0, -7.0]), rejected: doubles(&[-9.0, -4.0, -7.0]) };
    let at = [-11.0, -2.5, -7.0, -9.5, -5.0, -7.0];
    for label_smoothing in [0.0, 0.2] {
        let dpo = Dpo { beta: 0.7, label_smoothing };
        let sum = |values: &[f64]| {
            let all = doubles(values).set_requires_grad(true);
            let policy = LogProbs { chosen: all.narrow(0, 0, 3), rejected: all.narrow(0, 3, 3) };
            (dpo.compare(&policy, &reference).unwrap().losses.sum(Kind::Double), all)
        };
        let (loss, all) = sum(&at);
        loss.backward();
        let width = 1e-5;
        let slopes: Vec<f64> = (0..at.len())
            .map(|index| {
                let moved = |by: f64| {
                    let mut values = at;
                    values[index] += by;
                    sum(&values).0.double_value(&[])
                };
                (moved(width) - moved(-width)) / (2.0 * width)
            })
            .collect();
        nearly(&numbers(&all.grad()), &slopes, 1e-8, "slope");

        let far = LogProbs { chosen: doubles(&[-1e6, 0.0]), rejected: doubles(&[0.0, -1e6]) };
        let none = LogProbs { chosen: doubles(&[0.0, 0.0]), rejected: doubles(&[0.0, 0.0]) };
        let losses = numbers(&dpo.compare(&far, &none).unwrap().losses);
        nearly(&losses, &[7e5 * (1.0 - label_smoothing), 7e5 * label_smoothing], 1e-6, "loss");
    }
}

#[test]
fn a_row_with_one_side_is_no_pair() {
    let row = EncodedRow::of_one_side(0, vec![1, 2], vec![false, true]);
    let error = Pairs::new(&[&row], Beginnings::Each, Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("row 0 is no preference pair"), "{error}");
}
