"""How well events of training curves are told, by our watch and by the rules of public tools.

    python -m benchmarks.loss                            the kept corpus, tests/runs/loss, its set `score`
    python -m benchmarks.loss FOLDER --set tune          other runs
    python -m benchmarks.loss --detector ours --failures each miss and each false alarm with its rows
    python -m benchmarks.loss --write                    docs/loss-scores.md made anew

A folder holds `labels.yaml` and one NAME.csv a run (tests/runs/loss/README.md). How it is counted:

* A detector sees the rows one after another and gives *alarms*. Of each we keep the row at which it was
  told and the row that it names as the place: the first bad one. Rules of public tools name the row itself.
* An event is *found* by an alarm of the family whose place lies within [start - 1 row, end + 5 rows].
* *Delay* is the row at which the first such alarm was told, less the event's first row. An alarm that was
  told a row early has no delay.
* Alarms less than 10 rows apart are one *group*. A group is right when one of its alarms finds an event,
  wrong when none does and one of them stands on a clean row, and counts for nothing otherwise.
* *Clean* are the rows outside the warm-up, outside the events of any kind and the 15 rows after each, and
  outside the spans that the labels say to ignore.
* *Isolated* outliers (one row out, the next one back) belong to the data. An alarm on one counts for nothing
  in plain figures, and as false in those called strict.
* Figures are made for each *family*: `loss` (events of the loss against alarms of loss kinds), `grad` (bursts
  of the gradient norm against alarms of that kind), `step_time`, `loss+grad` (the events and alarms of both),
  `all` (everything labelled against everything told). A run counts where its log has the metrics of the
  family. What is told of one family says nothing for or against another.
* The kind of an alarm is the one last told: a spike that does not come back becomes a divergence. Its row and
  place are those first told.
"""
