"""Check the lines of a progress counter, but not their rates and remaining times."""

from kseg.system.progress import Progress


def lines_of(total, *updates):
    lines = []
    progress = Progress(total, "frames", lines.append, interval=0)
    for done, last in updates:
        progress.update(done, last)
    return lines


def test_known_total():
    lines = lines_of(3, (1, False), (2, False), (3, False))
    assert [line.split()[0] for line in lines] == ["1/3", "2/3", "3/3"]
    assert all("eta" in line for line in lines)


def test_unknown_total():
    first, last = lines_of(None, (1, False), (2, True))
    assert first.startswith("1 frames") and first.endswith("of an unknown number")
    assert last.startswith("2 frames") and "unknown" not in last
    assert "eta" not in first + last


def test_more_and_fewer_than_announced():
    assert "eta" not in lines_of(3, (4, False))[0] and lines_of(3, (4, False))[0].startswith("4 frames")
    line = lines_of(3, (2, True))[0]
    assert line.startswith("2/3 frames") and line.endswith("ended")


def test_the_last_line_is_reported_regardless_of_the_interval():
    lines = []
    progress = Progress(100, "frames", lines.append, interval=1e9)
    for done in range(1, 6):
        progress.update(done, last=done == 5)
    assert len(lines) == 1 and lines[0].startswith("5/100")
    progress.update(100)
    assert len(lines) == 2
