#!/bin/sh
# Draw docs/images/console.svg from a real run: in the middle of training, and its last screen.  Needs tmux, and the
# environment of asynclab to be active; run it in the root of the repository.
set -e
columns=104
command='COLORTERM=truecolor python train.py algo=a3c env=cartpole distributed.max_session=4 env.max_frame=400_000 log_every=2'
capture() {
    until tmux capture-pane -p -t asynclab_console | grep -q "$1"; do sleep 1; done
    tmux capture-pane -ep -t asynclab_console
}
tmux new-session -d -s asynclab_console -x $columns -y 40 "$command; sleep 60"
{ capture ' 5[0-9]\.[0-9]% '; capture 'to evaluate' | sed -n '/finished/,$p'; } | cat -s | python -c '
import sys
from rich.console import Console
from rich.text import Text

console = Console(record=True, width=int(sys.argv[1]), file=sys.stderr, color_system="truecolor", force_terminal=True)
console.print(Text.from_ansi(sys.stdin.read().strip() + "\n"))
console.save_svg("docs/images/console.svg", title="asynclab")' $columns
tmux kill-session -t asynclab_console
