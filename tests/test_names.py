import pytest
from hypothesis import given
from hypothesis import strategies as st

from taxiway import errors, names

words = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,127}", fullmatch=True)
projects = st.from_regex(r"[a-z][a-z0-9-]{4,28}[a-z0-9]", fullmatch=True)
buckets = st.from_regex(r"[a-z0-9][a-z0-9_-]{1,61}[a-z0-9]", fullmatch=True)
objects = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), min_size=1, max_size=200
).filter(lambda name: name not in (".", "..") and not name.startswith(".well-known/acme-challenge/"))


def fault_of(call, *arguments):
    with pytest.raises(errors.InvalidArgument) as caught:
        call(*arguments)
    return caught.value.faults[0]


@given(projects, words)
def test_a_model_s_name_comes_apart_into_what_it_was_made_of(project, model):
    name = names.model_name(project, model)
    assert names.parse_model(name) == (project, model)
    assert names.parse_model_or_version(name) == (project, model, "")


@given(projects, words, words)
def test_a_version_s_name_comes_apart_into_what_it_was_made_of(project, model, version):
    name = names.version_name(project, model, version)
    assert names.parse_version(name) == (project, model, version)
    assert names.parse_model_or_version(name) == (project, model, version)


@given(projects, words)
def test_names_of_jobs_operations_and_projects_come_apart_into_what_they_were_made_of(project, word):
    assert names.parse_job(names.job_name(project, word)) == (project, word)
    assert names.parse_operation(names.operation_name(project, word)) == (project, word)
    assert names.parse_project(names.project_name(project)) == project


@given(buckets, objects)
def test_an_address_comes_apart_into_what_it_was_made_of(bucket, name):
    assert names.gs(names.join_gs(bucket, name), "uri") == (bucket, name)
    assert names.gs(names.join_gs(bucket), "uri") == (bucket, "")


@given(
    st.sampled_from(
        [
            *(names.ml_name, names.project_id, names.region, names.runtime_version, names.python_version),
            *(names.python_module, names.bucket, names.object_name, names.parse_project, names.parse_job),
            *(names.parse_model, names.parse_version, names.parse_model_or_version, names.parse_operation, names.gs),
        ]
    ),
    st.text(max_size=300) | st.text("ab1_-./:", max_size=80),
)
def test_whatever_comes_is_taken_or_refused_by_the_name_of_its_field(check, text):
    try:
        check(text, "field")
    except errors.InvalidArgument as error:
        fields = {field for field, _ in error.faults}
    else:
        fields = {"field"}
    assert fields == {"field"}


def test_a_fault_names_the_field_says_what_is_allowed_and_shows_the_value():
    field, sentence = fault_of(names.ml_name, "my-job", "jobId")
    assert field == "jobId"
    assert sentence == (
        "A name must start with a letter and have only letters, digits and underscores, 128 characters at most."
        " It is 'my-job'."
    )


@pytest.mark.parametrize("name", ["a", "Train_1", "x" * 128])
def test_these_are_names_of_jobs_models_and_versions(name):
    assert names.ml_name(name, "jobId") == name


@pytest.mark.parametrize("name", ["", "1a", "_a", "a-b", "a b", "x" * 129, "ä", "a\n", "a/b"])
def test_these_are_not(name):
    fault_of(names.ml_name, name, "jobId")


@pytest.mark.parametrize("name", ["demo-project", "a12345", "a" * 30])
def test_these_are_project_ids(name):
    assert names.project_id(name, "project") == name


@pytest.mark.parametrize("name", ["", "short", "a" * 31, "1project", "my-project-", "My-Project", "my_project"])
def test_these_are_not_project_ids(name):
    fault_of(names.project_id, name, "project")


@pytest.mark.parametrize(
    "name", ["abc", "my-bucket", "my_bucket.example.com", "0a0", "a" * 63, ".".join(["a" * 63] * 3)]
)
def test_these_are_buckets(name):
    assert names.bucket(name, "name") == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "ab", "a" * 64, "My-Bucket", "-abc", "abc-", "a b c", "a/b/c", "192.168.5.4", "a" * 64 + ".com"),
        *("goog-data", "my-google-data", "my-g00gle-data", "x.gooogle.y", ".".join(["a" * 63] * 4)),
    ],
)
def test_these_are_not_buckets(name):
    assert fault_of(names.bucket, name, "name")[0] == "name"


def test_a_bucket_of_google_s_own_can_be_read_though_not_made():
    assert names.gs("gs://my-google-data/a.csv", "uri") == ("my-google-data", "a.csv")
    fault_of(names.bucket, "my-google-data", "name")


@pytest.mark.parametrize("name", ["a", "a/b/", "ü" * 512, "a b#?[*]", " ", "../a", "a//b"])
def test_these_are_objects(name):
    assert names.object_name(name, "name") == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a\nb", "a\rb", "a\0b", "ü" * 513, ".well-known/acme-challenge/x", "\ud800"]
)
def test_these_are_not_objects(name):
    fault_of(names.object_name, name, "name")


@pytest.mark.parametrize(
    "uri", ["", "gs://", "gs:///a", "gs:/abc/d", "GS://abc/d", "s3://abc/d", "abc/d", "gs://a b/c"]
)
def test_these_are_not_addresses(uri):
    assert fault_of(names.gs, uri, "trainingInput.jobDir")[0] == "trainingInput.jobDir"


@pytest.mark.parametrize("name", names.REGIONS)
def test_these_are_regions(name):
    assert names.region(name, "region") == name


@pytest.mark.parametrize(
    "name", ["", "mars", "us", "us-central", "us-moon1", "US-central1", "us-central1-a", "me-central2", "europe-west12"]
)
def test_these_are_not_regions(name):
    fault_of(names.region, name, "region")


def test_a_region_that_is_nearly_right_is_suggested():
    assert "Did you mean us-central1?" in fault_of(names.region, "us-centrall", "region")[1]


@pytest.mark.parametrize("name", ["us-central1", "northamerica-northeast1", "asia-southeast2", "me-central2"])
def test_buckets_may_be_in_more_places_than_jobs(name):
    assert names.location(name, "location") == name


@pytest.mark.parametrize("name", ["", "mars", "us", "us-central", "global", "US-central1", "us-central1-a"])
def test_these_are_no_locations(name):
    fault_of(names.location, name, "location")


def test_versions_of_runtimes_and_of_python_are_major_and_minor():
    assert names.runtime_version("2.21", "runtimeVersion") == "2.21"
    assert names.python_version("3.11", "pythonVersion") == "3.11"
    for wrong in ("", "2", "2.21.0", "latest", "2.x", "v2.1"):
        fault_of(names.runtime_version, wrong, "runtimeVersion")
        fault_of(names.python_version, wrong, "pythonVersion")


def test_a_module_is_identifiers_joined_by_dots():
    assert names.python_module("trainer.task", "pythonModule") == "trainer.task"
    for wrong in ("", ".", "trainer.", "trainer/task", "trainer-task", "a.class", "-m", "1a"):
        fault_of(names.python_module, wrong, "pythonModule")
    assert "Leave out the ending .py" in fault_of(names.python_module, "trainer-x.py", "pythonModule")[1]


def test_labels_are_told_all_their_faults_at_once():
    fine = {"owner": "ann", "team-1": "", "größe": "klein", "名前": "太郎"}
    assert names.labels(fine) is fine
    with pytest.raises(errors.InvalidArgument) as caught:
        names.labels({"Owner": "ann", "1a": "b", "": "c", "a" * 64: "d", "colour": "Red", "shape": "x" * 64})
    assert [field for field, _ in caught.value.faults] == [*["labels"] * 4, "labels.colour", "labels.shape"]
    assert "At most 64" in fault_of(names.labels, {f"k{index}": "" for index in range(65)})[1]


@pytest.mark.parametrize(
    "name",
    [
        *("", "projects", "projects/", "projects/demo-project/models", "projects/demo-project/models/"),
        *("project/demo-project/models/m", "projects/demo-project/jobs/m", "projects/demo-project/models/m/versions/v"),
        *("/projects/demo-project/models/m", "projects/demo-project/models/m/", "projects/Demo/models/m"),
        "projects/demo-project/models/my-model",
    ],
)
def test_these_are_not_names_of_models(name):
    assert fault_of(names.parse_model, name)[0] == "name"


def test_a_project_may_be_named_by_its_number():
    assert names.parse_project("projects/123456789012") == "123456789012"
    assert names.parse_job("projects/123456789012/jobs/j") == ("123456789012", "j")


def test_a_long_or_unprintable_value_is_shown_cut_and_escaped():
    assert len(fault_of(names.ml_name, "!" * 10_000, "jobId")[1]) < 300
    assert "\x1b" not in fault_of(names.ml_name, "\x1b[31m", "jobId")[1]
