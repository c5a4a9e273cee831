"""Study of docs/video.md: the TimeSformer of the rotation-trick paper at small scale, with three estimators."""
