"""Orders for demonstrations and evaluations."""

from cluster.evaluation.evaluate import orders_for


def test_gyms_take_turns_and_every_task_is_ordered_once():
    orders = orders_for(["travel", "function"], split="test", num_tasks=3, seed=7, difficulty=1)
    assert [(order.task_key.gym, order.task_key.index) for order in orders] == [
        ("travel", 0),
        ("function", 0),
        ("travel", 1),
        ("function", 1),
        ("travel", 2),
        ("function", 2),
    ]
    assert [order.group_id for order in orders] == list(range(6))
    assert {(order.group_size, order.seed) for order in orders} == {(1, 7)}
    assert {(order.task_key.split, order.task_key.seed, order.task_key.difficulty) for order in orders} == {
        ("test", 7, 1)
    }


def test_the_same_request_is_the_same_orders():
    first, second = (
        orders_for(["travel"], split="train", num_tasks=4, seed=0, difficulty=0) for _ in range(2)
    )
    assert first == second
