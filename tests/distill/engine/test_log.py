"""What stands beside the bar of a stage."""

from distill.engine.log import notes


def line(student, **losses):
    teachers = {
        name: {"summary": {"loss": loss / 2}, "dense": {"loss": loss / 2}}
        for name, loss in losses.items()
    }
    return {
        "student": student,
        "loss": sum(losses.values()) if losses else None,
        "teachers": teachers,
    }


def test_few_students_have_a_line_each():
    assert notes([line("a", sam=0.5), line("b", sam=0.5, clip=1.0), line("c")]) == [
        "a 0.500",
        "b 1.500 (sam 0.50, clip 1.00)",
        "c: not finite",
    ]


def test_of_many_the_mean_by_teacher():
    lines = [
        line("a", sam=0.5),
        line("b", sam=0.7, clip=1.0),
        line("c", clip=2.0),
        line("d"),
        line("e"),
    ]
    assert notes(lines) == ["5 students, 2 not finite; mean loss sam 0.60, clip 1.50"]
    assert notes([line(name) for name in "abcde"]) == ["5 students, 5 not finite"]
