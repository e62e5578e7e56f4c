"""What waits and wakes. It knows nothing of tasks, and imports nothing else of ours.

clock            the module `time`, out of reach of tests that stop the clock
locks            taking contended locks, and releasing those that an interruption has left taken
parking          `Parker`: one thread that waits to be woken; how long anybody may wait in one go
threads          starting threads although a signal handler may raise meanwhile; which thread is the main one
lazy_condition   a future's condition, made when somebody waits for it
timers           `Timers`: one thread, one heap of deadlines
guarded          calling what may raise anything, and going on
weak             references that keep nothing alive: upwards from a part, and out of an error's frames
"""
